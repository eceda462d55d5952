"""Command line options: read off the settings' dataclasses, or shared by several commands.

Imports no torch, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import importlib
import json
import re
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from ..config import PUBLISHED_KEYS, SamplingConfig, SoftMaskConfig
from ..rules import Kind, added, import_rule

# Settings that name a rule.
RULE_FIELDS: dict[str, Kind] = {
    "alg": "commit",
    "mode": "feedback",
    "transparency_alg": "feedback",
    "stop_rule": "stopping",
}


def new_parser(command: str, doc: str | None) -> argparse.ArgumentParser:
    """The parser of a command.

    Args:
        doc: of the command's module. What follows its first paragraph is the description; where it
            shows commands, indented, it keeps its own lines.
    """
    _, _, description = (doc or "").partition("\n\n")
    own_lines = "\n    " in description
    formatter = argparse.RawDescriptionHelpFormatter if own_lines else argparse.HelpFormatter
    return Parser(
        prog=f"softmask {command}",
        description=description,
        formatter_class=formatter,
        allow_abbrev=False,
    )


class Parser(argparse.ArgumentParser):
    """Takes options by their whole names, and names the nearest one to a misspelt one."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        # Older argparse takes -1e-3 for an option.
        self._negative_number_matcher = re.compile(r"-(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$")

    def format_help(self) -> str:
        """What --help prints."""
        self._name_rules()
        return super().format_help()

    def _name_rules(self) -> None:
        """Adds the rules that are known by now to the options: --rules may have brought some."""
        for action in self._actions:
            if kind := getattr(action, "rules_of", None):
                own = ", ".join(rule.name for rule in added(kind))
                base = (action.help or "").partition("; also ")[0]
                action.help = f"{base}; also {own}" if own else base

    def error(self, message: str) -> NoReturn:
        """Prints the error and the way to help; ends with exit code 2."""
        unknown = message.removeprefix("unrecognized arguments: ").split()
        if len(unknown) and message.startswith("unrecognized") and unknown[0].startswith("--"):
            name = unknown[0].partition("=")[0]
            shown = [option for action in self._actions for option in action.option_strings]
            near = difflib.get_close_matches(name, shown, n=1)
            message = f"there is no option {name}" + (f": did you mean {near[0]}?" if near else "")
        self.exit(2, f"{self.prog}: error: {message} (`{self.prog} --help` lists all options)\n")


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Which model, and where it runs."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model", help="folder or Hub id of a Dream model (default: the bundled one)"
    )
    group.add_argument("--adapter", help="folder or Hub id of a PEFT adapter to merge in")
    group.add_argument("--revision", help="branch, tag or commit on the Hub")
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


def add_rules_option(group: Any) -> None:
    """Modules with rules of decoding."""
    group.add_argument(
        "--rules",
        type=import_modules,
        metavar="MODULE,...",
        help="import these modules, which register rules of decoding (docs/guides/research.md)",
    )


def import_modules(text: str) -> str:
    """Imports the modules of a list; the folder that the command runs in is looked into too.

    Raises:
        argparse.ArgumentTypeError: there is no such module.
    """
    _look_here()
    for name in text.split(","):
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise argparse.ArgumentTypeError(f"there is no module {error.name}") from error
    return text


def rule_name(text: str) -> str:
    """A rule's name; of MODULE:NAME the module is imported first.

    Raises:
        argparse.ArgumentTypeError: there is no such module, or no rule in it.
    """
    if ":" not in text:
        return text
    _look_here()
    try:
        return import_rule(text).name
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _look_here() -> None:
    """The installed command does not look for modules where it is run, as `python -m` does."""
    if "" not in sys.path:
        sys.path.insert(0, "")


def rule_options(text: str) -> dict[str, Any]:
    """A rule's options, written NAME=VALUE,... or as a JSON object.

    Raises:
        argparse.ArgumentTypeError: it is neither.
    """
    try:
        if text.startswith("{"):
            return dict(json.loads(text))
        pairs = [part.split("=", 1) for part in text.split(",")]
        return {name.strip(): _value(word) for name, word in pairs}
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"write NAME=VALUE,... and not {text!r}") from error


def _value(word: str) -> Any:
    """A number or a truth value where it is one, else the word."""
    try:
        return json.loads(word)
    except ValueError:
        return word


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

    Raises:
        ValueError: see `hub.load`.
    """
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
        note = f" (default: {default})" if default != "" else ""
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


def add_decoding_options(parser: argparse.ArgumentParser) -> None:
    """How a text is decoded, and how soft-masking takes part."""
    group = parser.add_argument_group("decoding (a checkpoint may bring other defaults)")
    group.add_argument("--max-new-tokens", type=int, default=128, help="masks to fill (128)")
    group.add_argument("--seed", type=int, help="of the random choices (default: a new one)")
    group.add_argument("--system", help="system message of the chat template")
    group.add_argument("--no-live", action="store_true", help="no live view in a terminal")
    own = {"steps": "one per mask"}
    add_settings(group, SamplingConfig, "--", own, names={"steps": ["steps", "diffusion_steps"]})
    group = parser.add_argument_group("soft-masking (default: what the checkpoint brings)")
    group.add_argument("--no-soft-mask", action="store_true", help="decode plainly")
    defaults = {f.name: "the checkpoint's" for f in dataclasses.fields(SoftMaskConfig)}
    # A mode has other values under its published name, and is not accepted under it.
    published = {own: [own, key] for key, own in PUBLISHED_KEYS.items() if own != "mode"}
    add_settings(group, SoftMaskConfig, "--soft-mask-", defaults, names=published)


def soft_mask_of(args: argparse.Namespace, own: SoftMaskConfig | None) -> SoftMaskConfig | None:
    """The checkpoint's soft-mask parameters with what the command line changes.

    Raises:
        ValueError: the options contradict each other, or no scale is known.
    """
    changes = given(args, SoftMaskConfig)
    if args.no_soft_mask:
        if changes:
            raise ValueError("--no-soft-mask and a --soft-mask option contradict each other")
        return None
    if own is None and changes and "scale" not in changes:
        raise ValueError("this checkpoint has no soft-mask parameters: give --soft-mask-scale too")
    from ..decoding.generation import choose_soft_mask

    return choose_soft_mask(changes or "checkpoint", own)
