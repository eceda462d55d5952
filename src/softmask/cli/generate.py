"""softmask generate: a text from a prompt, or the holes or a stretch of one filled in.

Writes a text from a prompt (an argument, --file or standard input), fills the holes of --infill,
or writes a stretch anew (--replace). In a terminal it shows the canvas being denoised, and in the
end what the text cost and its seed; in a pipe it prints the text alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
from collections.abc import Mapping
from typing import Any

from ..config import SamplingConfig, SoftMaskConfig
from ..constraints.constraint import Constraint
from ..files import not_utf8
from ..reporting.progress import progress
from ..reporting.words import count
from .closing_line import Cost, print_text, say, seed_line, settings_line, soft_mask_given
from .form_options import add_form_options, constraint_of
from .options import (
    add_decoding_options,
    add_model_options,
    given,
    load_model,
    new_parser,
    path_of,
    soft_mask_of,
)
from .recording import add_recording_options, is_recording, record_run, write_recordings
from .replace import add_replace_options, check_replace, run_replace
from .text_flow import TextFlow

ESCAPES = {"\\n": "\n", "\\t": "\t", "\\\\": "\\"}


def make_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = new_parser("generate", __doc__)
    parser.add_argument("prompt", nargs="?", help="the prompt; - reads standard input")
    parser.add_argument("--file", type=path_of, help="read the prompt from this file")
    parser.add_argument(
        "--infill",
        nargs="?",
        const=True,
        metavar="TEXT",
        help="fill the holes [[n]] (n tokens each) of TEXT, in which \\n and \\t are escapes; a "
        "model of DreamOn's takes one, which begins with n and may have --max-new-tokens; a space "
        "before a hole is the hole's to begin with: 'One day, [[6]] went'; without TEXT, of "
        "the prompt",
    )
    add_replace_options(parser)
    parser.add_argument("--raw", action="store_true", help="no chat template around the prompt")
    parser.add_argument(
        "-n", "--num-return-sequences", metavar="N", type=int, default=1, help="texts a prompt (1)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object a text")
    parser.add_argument(
        "--stream", action="store_true", help="print the text as far as it is decided, as it grows"
    )
    add_recording_options(parser)
    add_model_options(parser)
    add_form_options(parser)
    add_decoding_options(parser)
    return parser


def run(args: argparse.Namespace, _argv: list[str]) -> int:
    """Runs the command with parsed arguments."""
    if args.json and args.stream:
        raise ValueError("--json and --stream contradict each other")
    if args.stream and args.num_return_sequences > 1:
        raise ValueError("--stream shows one text: leave out -n")
    recording, span = is_recording(args), check_replace(args)
    prompt, constraint = _prompt(args), constraint_of(args)
    checkpoint = load_model(args)
    if args.infill is not None:
        prompt = _with_line_end(prompt, checkpoint)
    elif args.prompt in (None, "-"):
        prompt = _without_line_end(prompt, checkpoint)
    if span is not None:
        return run_replace(args, checkpoint, prompt, span, constraint)
    generation = start_generation(
        args,
        checkpoint,
        prompt,
        infill=args.infill is not None,
        raw=args.raw,
        constraint=constraint,
    )
    if recording:
        with progress("writing, and recording every step", quiet=args.quiet):
            trace = record_run(args, generation)
        recorded = trace["runs"][0]
        print_text(recorded["end"]["text"], _before(generation))
        say(_closing_lines(args, generation, Cost.of_recorded(recorded)), args)
        files = write_recordings(args, trace)  # what cannot be written does not cost the text
        say([f"written: {', '.join(map(str, files))}"], args)
        return 0
    if args.stream:
        _stream(generation)
    else:
        try:
            show_steps(generation, args)
        except KeyboardInterrupt:
            _keep_decided(generation, args)
            raise
        _print_completions(generation, args)
    say(_closing_lines(args, generation, Cost.of(generation)), args)
    return 0


def _print_completions(generation: Any, args: argparse.Namespace) -> None:
    """The finished texts, for people or as JSON."""
    soft = generation.soft_mask
    settings = {
        "sampling": dataclasses.asdict(generation.sampling),
        "soft_mask": None if soft is None else dataclasses.asdict(soft),
    }
    for completion in generation.completions():
        if args.json:
            print(json.dumps(dataclasses.asdict(completion) | {"settings": settings}))
        else:
            print_text(completion.text, _before(generation))


def _keep_decided(generation: Any, args: argparse.Namespace) -> None:
    """Leaves on the screen what was decided from the left of a text that was stopped."""
    if generation.last is not None and sys.stdout.isatty() and not args.json:
        print_text(generation.decided(generation.last), _before(generation))
        say([f"stopped after {count(generation.last.forwards, 'forward')}"], args)


def _before(run: Any) -> str:
    """The prompt that a text goes on from; nothing where it answers one, or holds it."""
    prompt = run.prompts[0]
    return prompt if run.continues and isinstance(prompt, str) else ""


def _closing_lines(args: argparse.Namespace, run: Any, cost: Cost) -> list[str | None]:
    """What the text cost, its seed, and the settings that are not defaults."""
    yours = given(args, SamplingConfig) | soft_mask_given(given(args, SoftMaskConfig))
    if args.feedback is not None:
        yours["feedback"] = args.feedback
    sources = [("from the checkpoint", run.suited), ("from you", yours)]
    return [
        str(cost),
        seed_line(run, drawn=args.seed is None),
        settings_line(run.sampling, sources),
    ]


def start_generation(
    args: argparse.Namespace,
    checkpoint: Any,
    prompt: Any,
    *,
    infill: bool = False,
    raw: bool = False,
    defaults: Mapping[str, Any] | None = None,
    constraint: Constraint | None = None,
) -> Any:
    """The Generation that the options describe, not yet run.

    Args:
        prompt: a text, or a conversation as a list of messages.
        defaults: settings of SamplingConfig that hold where the options say nothing.
        constraint: the form of the answer.

    Raises:
        ValueError: see `Generation`, and contradictory soft-mask options.
    """
    from ..decoding.generation import Generation

    prompts = prompt if isinstance(prompt, str) else [prompt]
    return Generation(
        checkpoint,
        prompts,
        max_new_tokens=args.max_new_tokens,
        sampling={**(defaults or {}), **given(args, SamplingConfig)},
        soft_mask=soft_mask_of(args, checkpoint.soft_mask),
        seed=args.seed,
        num_return_sequences=getattr(args, "num_return_sequences", 1),
        chat=False if raw else None,
        system=args.system,
        infill=infill,
        constraint=constraint,
    )


def show_steps(generation: Any, args: argparse.Namespace, start: int | None = None) -> None:
    """Runs the steps; in a terminal with the live view, from the column `start` on.

    Without that view standard error says how far it is, if it is a terminal.
    """
    if sys.stdout.isatty() and not args.no_live and not getattr(args, "json", False):
        from rich.console import Console

        from .live_view import LiveView

        with LiveView(generation, Console(), start) as view:
            for step in generation:
                view.show(step)
        return
    steps = generation.sampling.steps
    with progress("writing", total=steps, unit="steps", quiet=args.quiet) as shown:
        for _step in generation:
            shown.advance()


def _stream(generation: Any) -> None:
    """Prints what is decided from the left; the pieces joined are the finished text."""
    shown = ""
    with TextFlow(_before(generation)) as flow:
        for step in generation:
            text = generation.decided(step)
            if text.startswith(shown):
                flow.write(text[len(shown) :])
                shown = text
        flow.write(generation.completions()[0].text[len(shown) :])


def _prompt(args: argparse.Namespace) -> str:
    """The prompt from where it stands: --infill, argument, --file or standard input."""
    sources = [args.prompt is not None, args.file is not None, isinstance(args.infill, str)]
    if sum(sources) > 1:
        raise ValueError("give one prompt: as an argument, by --file or by --infill")
    if isinstance(args.infill, str):
        return re.sub(r"\\[nt\\]", lambda found: ESCAPES[found[0]], args.infill)
    if args.file is not None:
        if not args.file.exists():
            raise ValueError(f"there is no file {args.file}")
        if args.file.is_dir():
            raise ValueError(f"{args.file} is a folder: give a file with the prompt")
        return _decode(args.file.read_bytes(), str(args.file))
    if args.prompt not in (None, "-"):
        return args.prompt
    if args.prompt is None and sys.stdin.isatty():
        raise ValueError('say what to write: softmask generate "One day, Tom"')
    return _decode(sys.stdin.buffer.read(), "standard input")


def _without_line_end(prompt: str, checkpoint: Any) -> str:
    """A prompt from a file or a pipe without the line end that editors and `echo` put last.

    A kind of prompts that the model knows by how they begin may end in one, as puzzles do.
    """
    if any(prompt.startswith(kind.prompt_starts_with) for kind in checkpoint.prompt_kinds):
        return prompt
    return prompt.removesuffix("\n")


def _with_line_end(text: str, checkpoint: Any) -> str:
    """A text of lines, which a kind of prompts begins as, with the last line end that it lost.

    Editors and `$(cat FILE)` leave it off, and a model answers what it was trained on.
    """
    begins = (start for kind in checkpoint.prompt_kinds for start in kind.prompt_starts_with)
    is_of_lines = text.startswith(tuple(start for start in begins if start.endswith("\n")))
    return f"{text}\n" if is_of_lines and not text.endswith("\n") else text


def _decode(raw: bytes, where: str) -> str:
    """Text with the line ends that models know."""
    try:
        return raw.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise not_utf8(where, error) from error
