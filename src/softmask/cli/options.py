"""Command line options: read off the settings' dataclasses, or shared by several commands.

Imports no torch, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import itertools
import re
import sys
import textwrap
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from ..config import (
    BUNDLED,
    FEEDBACK_HELP,
    FEEDBACK_PRESETS,
    PUBLISHED_KEYS,
    SamplingConfig,
    SoftMaskConfig,
    require_choice,
)
from ..files import expand_home
from ..reporting.progress import progress
from ..reporting.words import tell
from .rule_options import RULE_FIELDS, add_rules_option, name_rules, rule_name, rule_options

# How a switch is written where options are typed one by one.
ON_OFF = {"on": True, "off": False}
# What `--help` shows of the commands with many options; `--help-all` shows all, by group.
FIRST = {
    "generate": "prompt --infill --model --adapter --max-new-tokens --temperature --seed --steps "
    "--block-length --no-soft-mask --html --json",
    "chat": "--model --adapter --device --dtype --system --max-new-tokens --temperature --top-p "
    "--seed --no-soft-mask",
    "serve": "--model --adapter --chat-template --name --host --port --api-key --max-tokens "
    "--running --memory-mb --device",
    "train": "recipe --data --valid --model --iters --batch-size --learning-rate --train-on "
    "--no-soft-mask --seed --out --dry-run",
    "eval": "--tasks --model --adapter --limit --num-fewshot --max-new-tokens --steps "
    "--no-soft-mask --batch-size --device --out",
    "eval suite": "suite --tasks --model --adapter --modes --fractions --limit --batch-size "
    "--device --out",
    "eval sweep": "--tasks --steps --threshold --feedback --metric --model --adapter --limit "
    "--num-fewshot --batch-size --device --out",
    "eval samples": "--texts --count --prompt --model --adapter --max-new-tokens --steps "
    "--temperature --no-soft-mask --out",
    "eval ppl": "--data --limit --length --times --model --adapter --no-soft-mask --batch-size "
    "--device --out",
    "eval calibration": "--puzzles --givens --count --texts --share --passes --steps --model "
    "--no-soft-mask --out --json",
    "bench": "--model --shape --batch --prompt-tokens --max-new-tokens --steps --block-length "
    "--cache --device --dtype --out --json",
}

OF_CHECKPOINT = "a checkpoint may bring other defaults, as the bundled does"


def new_parser(command: str, doc: str | None) -> Parser:
    """The parser of a command.

    Args:
        doc: of the command's module. What follows its first paragraph is the description, in which
            indented lines, commands that it shows, are kept.
    """
    _, _, description = (doc or "").partition("\n\n")
    return Parser(
        prog=f"softmask {command}",
        description=description,
        formatter_class=_Formatter,
        allow_abbrev=False,
        first=FIRST.get(command, "").split(),
    )


class _Formatter(argparse.HelpFormatter):
    """Wraps the paragraphs of a description, and keeps its indented lines."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        lines: list[str] = []
        for is_own, group in itertools.groupby(text.strip("\n").splitlines(), _is_own_line):
            if is_own:
                lines += [part for line in group for part in _in_width(line, width)]
            else:
                lines += textwrap.wrap(" ".join(group), width, break_on_hyphens=False)
        return "\n".join(indent + line for line in lines)


def _is_own_line(line: str) -> bool:
    return not line.strip() or line.startswith("    ")


def _in_width(line: str, width: int) -> list[str]:
    """An indented line, broken where it is too long; a command so that it can be copied."""
    behind = " " * 8
    if len(line) <= width or not line.startswith("    softmask") or "   " in line.strip():
        return textwrap.wrap(line, width, subsequent_indent=behind) or [""]
    command, *options = line.split(" --")
    lines = [command]
    for option in options:
        if len(lines[-1]) + len(f" --{option} \\") <= width:
            lines[-1] += f" --{option}"
        else:
            lines.append(f"{behind}--{option}")
    return [*(f"{one} \\" for one in lines[:-1]), lines[-1]]


class Parser(argparse.ArgumentParser):
    """Takes options by their whole names, and names the nearest one to a misspelt one.

    Args:
        first: the options that `--help` shows, where there are too many for one look.
    """

    def __init__(self, *, first: Sequence[str] = (), **settings: Any) -> None:
        super().__init__(**settings, add_help=False)
        self._first = first
        shown = "the options used most, and no more" if first else "this list, and no more"
        self.add_argument("-h", "--help", action=_Help, help=shown)
        if first:
            self.add_argument("--help-all", action=_Help, help="all options, and no more")
        # Older argparse takes -1e-3 for an option.
        self._negative_number_matcher = re.compile(r"-(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$")

    def format_help(self) -> str:
        """What --help-all prints, or --help where options are few."""
        name_rules(self)
        return super().format_help()

    def settings(self) -> dict[str, argparse.Action]:
        """The options that decide an answer, by the names of the settings."""
        found = {}
        for action in self._actions:
            if action.help == argparse.SUPPRESS:
                continue
            name = (action.option_strings or [action.dest])[0].lstrip("-").replace("-", "_")
            if "." in action.dest or name in ("max_new_tokens", "seed"):
                found[name] = action
            elif name == "no_soft_mask":
                found["soft_mask"] = action
            elif name == "feedback":
                found[name] = action
        return found

    def format_short_help(self) -> str:
        """The help that shows the options used most; all of them where they are few."""
        if not self._first:
            return self.format_help()
        name_rules(self)
        formatter = self.formatter_class(prog=f"{self.prog} [options]")
        formatter.add_usage(None, self._get_positional_actions(), [])
        formatter.add_text(self.description)
        decodes = "--temperature" in self._first
        formatter.start_section(f"most used ({OF_CHECKPOINT})" if decodes else "most used")
        by_name = {name: a for a in self._actions for name in (a.dest, *a.option_strings)}
        formatter.add_arguments([by_name[name] for name in self._first if name in by_name])
        formatter.end_section()
        count = sum(action.help != argparse.SUPPRESS for action in self._actions)
        formatter.add_text(f"`{self.prog} --help-all` lists all {count} options by group.")
        return formatter.format_help()

    def _positional_names(self) -> list[str]:
        return [action.dest for action in self._get_positional_actions()]

    def error(self, message: str) -> NoReturn:
        """Prints the error and the way to help; ends with exit code 2."""
        unknown = message.removeprefix("unrecognized arguments: ").split()
        if len(unknown) and message.startswith("unrecognized") and unknown[0].startswith("-"):
            name = unknown[0].partition("=")[0]
            shown = [option for action in self._actions for option in action.option_strings]
            near = difflib.get_close_matches(name, shown, n=1) if name.startswith("--") else []
            message = f"there is no option {name}" + (f": did you mean {near[0]}?" if near else "")
            if not near and "prompt" in self._positional_names():
                message += " (a prompt that begins with - stands behind --)"
        elif message.endswith("expected one argument"):
            option = message.split()[1].split("/")[-1].rstrip(":")
            message += f" (one that begins with - is written {option}=VALUE)"
        elif message.startswith("unrecognized") and "prompt" in self._positional_names():
            rest = " ".join(unknown)
            message = f'put the prompt in quotes, as in "One day, Tom": it goes on with {rest}'
        help = "--help-all" if self._first else "--help"
        tell(f"{self.prog}: error: {message} (`{self.prog} {help}` lists all options)", sys.stderr)
        self.exit(2)


class _Help(argparse.Action):
    """Prints the help that its option names, and ends the command."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str | None = None) -> None:
        super().__init__(option_strings, "help", nargs=0, default=argparse.SUPPRESS, help=help)

    def __call__(self, parser: Any, *_given: Any) -> None:
        whole = "--help-all" in self.option_strings
        print(parser.format_help() if whole else parser.format_short_help(), end="")
        parser.exit()


def path_of(text: str) -> Path:
    """A path; no shell expands the `~` of `--out=~/runs`.

    Raises:
        argparse.ArgumentTypeError: there is no such user whose folder this would be.
    """
    try:
        return expand_home(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def add_family_option(group: Any) -> None:
    """What the model is."""
    group.add_argument(
        "--family", help="of models whose files do not say: opendcoder, dparallel-dream, ..."
    )


def add_layout_option(group: Any) -> None:
    """How an export is written."""
    group.add_argument(
        "--layout",
        choices=["softmask", "original"],
        help="original: files as the model's family has them (default: softmask, with its code)",
    )


def add_model_options(parser: argparse.ArgumentParser, default: str = "the bundled") -> None:
    """Which model, and where it runs; `default`: what help says of the model."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model", help=f"folder, GGUF file or Hub id of a model (default: {default})"
    )
    group.add_argument("--adapter", help="folder or Hub id of a PEFT adapter to merge in")
    group.add_argument("--revision", help="branch, tag or commit on the Hub")
    add_family_option(group)
    group.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: the best there is)")
    group.add_argument(
        "--dtype",
        help="float32, bfloat16, float16, auto (default: on a CPU float32, where bfloat16 takes a "
        "third of the time if it is in hardware; elsewhere the checkpoint's)",
    )
    group.add_argument("--device-map", help="spread over devices: auto (needs accelerate)")
    group.add_argument(
        "--quantize", help="linear layers in int8 or int4 (needs bitsandbytes; lossy; default: off)"
    )
    group.add_argument("--threads", type=int, help="CPU threads (default: all)")
    add_rules_option(group)


def set_threads(count: int | None) -> None:
    """Sets the CPU threads of this process; None: torch's own choice, one for each core.

    Raises:
        ValueError: a count below 1.
    """
    if count is not None:
        from ..hub.load import set_threads

        set_threads(count)


def load_config(args: argparse.Namespace) -> Any:
    """What `add_model_options` describe, as a `LoadConfig`."""
    from ..hub.load import LoadConfig

    names = [field.name for field in dataclasses.fields(LoadConfig)]
    return LoadConfig(**{name: getattr(args, name) for name in names})


def load_model(args: argparse.Namespace) -> Any:
    """The checkpoint that `add_model_options` describe, on as many threads as they say.

    Says so before it imports torch, which alone takes seconds.

    Raises:
        ValueError: see `hub.load`.
    """
    name = args.model or args.adapter or BUNDLED
    shown = "the bundled model" if name == BUNDLED else name
    with progress(f"loading {shown}", quiet=getattr(args, "quiet", False)):
        return load_config(args).load()


def add_settings(
    group: Any,
    cls: type,
    prefix: str,
    defaults: Mapping[str, str],
    leave_out: Sequence[str] = (),
    names: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """One option for each field of a settings class; what is not given stays unset.

    Args:
        defaults: what the help says of a field's default, where it is not the class' own.
        names: for some fields their option's names without dashes, in place of the field's own:
            the first one is shown, the others are accepted and hidden.
    """
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if field.name in leave_out:
            continue
        own_default = field.default
        if own_default in (None, dataclasses.MISSING):
            own_default = "off" if own_default is None else ""
        default = defaults.get(field.name, own_default)
        said = default == "" or "(default: " in field.metadata["help"]
        note = "" if said else f" (default: {default})"
        values: dict[str, Any] = {"action": "store_true"}
        scalar = _scalar(hints[field.name])
        shown, *hidden = (names or {}).get(field.name, [field.name])
        if scalar is not bool:
            values = {"type": scalar, "metavar": shown.split("_")[-1].upper()}
        if field.name in RULE_FIELDS:
            values["type"] = rule_name
        elif scalar is dict:
            values |= {"type": rule_options, "metavar": "NAME=VALUE,..."}
        values |= {"dest": _dest(cls, field.name), "default": None}
        help = f"{field.metadata['help']}{note}".replace("%", "%%")
        action = group.add_argument(prefix + shown.replace("_", "-"), help=help, **values)
        if field.name in RULE_FIELDS:
            action.rules_of = RULE_FIELDS[field.name]
        for name in hidden:
            add_hidden(group, "--" + name.replace("_", "-"), **values)


def words(text: str) -> tuple[str, ...]:
    """Words with commas between them, as one option takes several; spaces around them are none."""
    return tuple(word.strip() for word in text.split(","))


def counts(text: str) -> tuple[int, ...]:
    """Counts with commas between them, each at least 1."""
    try:
        found = tuple(map(int, words(text)))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} must be whole numbers: 1 or 1,4,16") from None
    if min(found) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be at least 1")
    return found


def choices_of(known: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    """Reads some of these words, with commas between them."""

    def read(text: str) -> tuple[str, ...]:
        for word in words(text):
            if word not in known:
                raise argparse.ArgumentTypeError(f"{word!r} is none of {', '.join(known)}")
        return words(text)

    return read


def add_hidden(group: Any, name: str, **values: Any) -> None:
    """An option that is accepted under a published or older name, and not shown."""
    group.add_argument(name, help=argparse.SUPPRESS, **values)


def _dest(cls: type, name: str) -> str:
    return f"{cls.__name__}.{name}"


def _scalar(annotation: Any) -> type:
    """The type of an option's word; of a number or a word it is the class that tells them apart."""
    if isinstance(annotation, types.UnionType):
        options = [a for a in typing.get_args(annotation) if a is not type(None)]
        annotation = str if str in options else options[0]
    return typing.get_origin(annotation) or annotation


def given(args: argparse.Namespace, cls: type) -> dict[str, Any]:
    """The settings of a class that the command line names."""
    names = [f.name for f in dataclasses.fields(cls)]
    values = {name: getattr(args, _dest(cls, name), None) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def add_decoding_options(
    parser: argparse.ArgumentParser,
    max_new_tokens: int | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> None:
    """How a text is decoded, and how soft-masking takes part.

    Args:
        max_new_tokens: the default; None: what suits the prompt.
        defaults: what the help says of a setting's default, where the command has its own.
    """
    group = parser.add_argument_group(
        "decoding", f"{OF_CHECKPOINT}, also for some kinds of prompts"
    )
    usual = "what suits the prompt by the checkpoint's file, else 128"
    group.add_argument(
        "--max-new-tokens",
        type=int,
        default=max_new_tokens,
        help=f"masks to fill (default: {max_new_tokens or usual})",
    )
    group.add_argument("--seed", type=int, help="of the random choices (default: a new one)")
    group.add_argument("--system", help="system message of the chat template")
    group.add_argument("--no-live", action="store_true", help="no live view in a terminal")
    group.add_argument(
        "--quiet", action="store_true", help="no progress and no closing line on standard error"
    )
    own = {"steps": "one per mask", **{k: str(v) for k, v in (defaults or {}).items()}}
    add_settings(group, SamplingConfig, "--", own, names={"steps": ["steps", "diffusion_steps"]})
    group = parser.add_argument_group("soft-masking (default: what the checkpoint brings)")
    group.add_argument("--no-soft-mask", action="store_true", help="decode plainly")
    add_feedback_option(group)
    defaults = {f.name: "the checkpoint's" for f in dataclasses.fields(SoftMaskConfig)}
    # A mode has other values under its published name, and is not accepted under it.
    published = {own: [own, key] for key, own in PUBLISHED_KEYS.items() if own != "mode"}
    add_settings(group, SoftMaskConfig, "--soft-mask-", defaults, names=published)


def add_feedback_option(group: Any) -> None:
    """Settings of the feedback by their name."""
    group.add_argument("--feedback", type=_preset, metavar="NAME", help=FEEDBACK_HELP)


def _preset(name: str) -> str:
    try:
        require_choice("feedback", name, tuple(FEEDBACK_PRESETS))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return name


def with_feedback(checkpoint: Any, preset: str | None) -> Any:
    """The checkpoint as if it brought these settings itself; None: it as it is.

    Raises:
        ValueError: it has no settings of its own, which are asked for.
    """
    if preset is None:
        return checkpoint
    from ..decoding.generation import choose_soft_mask

    chosen = choose_soft_mask(preset, checkpoint.soft_mask)
    return dataclasses.replace(checkpoint, soft_mask=chosen)


def soft_mask_of(args: argparse.Namespace, own: SoftMaskConfig | None) -> SoftMaskConfig | None:
    """The checkpoint's soft-mask parameters with what the command line changes.

    Raises:
        ValueError: the options contradict each other, or no scale is known.
    """
    changes = given(args, SoftMaskConfig)
    if args.no_soft_mask:
        if changes:
            raise ValueError("--no-soft-mask and a --soft-mask option contradict each other")
        if args.feedback not in (None, "off"):
            raise ValueError(f"--no-soft-mask and --feedback {args.feedback} contradict each other")
        return None
    if args.feedback is not None:
        changes["feedback"] = args.feedback
    elif own is None and changes and "scale" not in changes:
        raise ValueError("this checkpoint has no soft-mask parameters: give --soft-mask-scale too")
    from ..decoding.generation import choose_soft_mask

    return choose_soft_mask(changes or "checkpoint", own)
