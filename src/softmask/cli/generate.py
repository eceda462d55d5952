"""softmask generate | chat | demo | train | eval | lm_eval | bench | serve | view | export | push

Every option is read off the settings in config.py. torch and transformers are imported by the
command that needs them, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import __version__
from ..config import SamplingConfig, SoftMaskConfig
from .options import add_model_options, add_settings, given, load_model, set_threads
from .record import add_recording_options, add_view, is_recording, record_run
from .serve import add_serve

ESCAPES = {"\\n": "\n", "\\t": "\t", "\\\\": "\\"}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0, 2 for a user's mistake, 130 for Ctrl-C."""
    argv = list(sys.argv[1:] if argv is None else argv)
    # Where it is installed, it advises on every import to install kernels of its own.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    parser = build_parser()
    args, rest = parser.parse_known_args(argv)
    if rest and args.run not in (_bench, _eval, _lm_eval):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        return args.run(args, rest)
    except ValueError as error:
        sentence = " ".join(str(error).split())
        print(f"softmask: error: {sentence}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output has left: say nothing, and keep Python from flushing to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="softmask",
        description="Run, train, evaluate and time soft-masked diffusion language models.",
    )
    parser.add_argument("--version", action="version", version=f"softmask {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_generate(commands)
    _add_chat(commands)
    _add_demo(commands)
    _add_train(commands)
    _add_eval(commands)
    _add_bench(commands)
    add_serve(commands)
    add_view(commands)
    _add_export(commands)
    _add_push(commands)
    return parser


def _add_generate(commands: Any) -> None:
    parser = commands.add_parser(
        "generate",
        help="write a text from a prompt, or fill holes in one",
        description="Writes a text from a prompt (an argument, --file or standard input), or "
        "fills the holes of --infill. In a terminal it shows the canvas being denoised; in a pipe "
        "it prints the text alone.",
    )
    parser.add_argument("prompt", nargs="?", help="the prompt; - reads standard input")
    parser.add_argument("--file", type=Path, help="read the prompt from this file")
    parser.add_argument(
        "--infill",
        nargs="?",
        const=True,
        metavar="TEXT",
        help="fill the holes [[n]] (n tokens each) of TEXT, in which \\n and \\t are escapes; a "
        "token brings the space before it, so leave none in front of a hole: 'One day,[[6]] went'; "
        "without TEXT, of the prompt",
    )
    parser.add_argument("--raw", action="store_true", help="no chat template around the prompt")
    parser.add_argument(
        "-n", "--num-return-sequences", type=int, default=1, help="texts a prompt (1)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object a text")
    parser.add_argument(
        "--stream", action="store_true", help="print the text as far as it is decided, as it grows"
    )
    add_recording_options(parser)
    add_model_options(parser)
    _add_decoding_options(parser)
    parser.set_defaults(run=_generate)


def _add_chat(commands: Any) -> None:
    parser = commands.add_parser(
        "chat",
        help="talk with an Instruct model",
        description="Talks with an Instruct model. /clear forgets the conversation, /exit leaves.",
    )
    add_model_options(parser)
    _add_decoding_options(parser)
    parser.set_defaults(run=_chat)


def _add_demo(commands: Any) -> None:
    parser = commands.add_parser(
        "demo",
        help="the bundled model solves puzzles, and how often, and writes stories",
        description="Shows the bundled model solving Sudoku and Countdown puzzles, going on with a "
        "story and filling the holes of another, and prints its accuracy on puzzles, plain against "
        "soft-masked, at full, half and quarter steps.",
    )
    parser.add_argument("--model", help="another folder or Hub id than the bundled model")
    parser.add_argument("--puzzles", type=int, help="fresh puzzles of each kind for the table (24)")
    parser.add_argument("--kinds", help="sudoku_9x9,countdown_3,...: these alone (default: all)")
    parser.add_argument("--givens", type=int, help="of the 9x9 Sudokus, 28 (hard) to 80 (32)")
    parser.add_argument("--files", type=Path, help="score Dream's evaluation files in this folder")
    parser.add_argument("--limit", type=int, help="with --files: at most this many of each file")
    parser.add_argument("--json", action="store_true", help="the last line is JSON")
    parser.set_defaults(run=_demo)


def _add_train(commands: Any) -> None:
    parser = commands.add_parser(
        "train",
        help="fine-tune or pretrain a model by a recipe",
        description="Trains by a recipe: mix and coding are the published fine-tunings of Dream "
        "and Dream-Coder, the others pretrain small models from nothing. A run that was stopped "
        "goes on where it was; what is finished is not run again. On several GPUs: torchrun "
        "--nproc_per_node 4 -m softmask train mix.",
    )
    parser.add_argument("recipe", nargs="?", help="name of a bundled recipe, or a YAML file")
    parser.add_argument(
        "--published",
        nargs=2,
        type=Path,
        metavar=("BASE", "DATASET"),
        help="instead: a base and a dataset config in the published JSON layout",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a setting: --set train.learning_rate=2e-5 --set train.stages.0.steps=10",
    )
    parser.add_argument("--no-soft-mask", action="store_true", help="the binary twin")
    parser.add_argument("--seed", type=int, help="of weights, data and masks")
    parser.add_argument("--seeds", help="a run for each, one after another: 1231-1235 or 1,2,3")
    parser.add_argument("--twins", action="store_true", help="each also without soft-masking")
    parser.add_argument(
        "--out",
        type=Path,
        help="folder of the run (default: runs/NAME-seedSEED); with --seeds, --twins: of all",
    )
    parser.add_argument("--overwrite", action="store_true", help="delete an earlier run there")
    parser.add_argument("--device", help="cpu, or the accelerator (default: the best there is)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: all)")
    parser.set_defaults(run=_train)


def _add_eval(commands: Any) -> None:
    parser = commands.add_parser(
        "eval",
        help="score a model on benchmarks, with a record that can be trusted",
        add_help=False,  # its options, and those of its own commands, are in eval_cli.py
    )
    parser.set_defaults(run=_eval)
    parser = commands.add_parser(
        "lm_eval",
        help="lm-evaluation-harness' own command line, which then knows --model softmask",
        add_help=False,
    )
    parser.set_defaults(run=_lm_eval)


def _add_bench(commands: Any) -> None:
    parser = commands.add_parser(
        "bench",
        help="ms per step, tokens/s and memory, plain and soft-masked",
        add_help=False,  # its options, and their help, are in benchmark.py, which imports torch
    )
    parser.set_defaults(run=_bench)


def _add_export(commands: Any) -> None:
    parser = commands.add_parser(
        "export",
        help="write a folder that transformers loads without softmask",
        description="Writes a folder with weights (an adapter is merged in), tokenizer, soft-mask "
        "parameters and code, which AutoModel.from_pretrained(DIR, trust_remote_code=True) loads "
        "without this package.",
    )
    parser.add_argument("target", type=Path, metavar="DIR", help="the folder to write")
    parser.add_argument(
        "--model", help="folder or Hub id of a Dream model (default: the adapter's, or the bundled)"
    )
    parser.add_argument("--adapter", help="folder or Hub id of a PEFT adapter to merge in")
    parser.add_argument("--revision", help="branch, tag or commit of the model on the Hub")
    parser.add_argument("--dtype", help="convert to float32, bfloat16 or float16 (default: keep)")
    parser.add_argument("--overwrite", action="store_true", help="replace an older export in DIR")
    parser.set_defaults(run=_export)


def _add_push(commands: Any) -> None:
    parser = commands.add_parser(
        "push",
        help="upload an adapter or an exported model to the Hub",
        description="Uploads the folder of an adapter or of an exported model to the Hub, without "
        "training state; with --model or --adapter instead of a folder it exports those first.",
    )
    parser.add_argument("repo", metavar="REPO", help="where to: OWNER/NAME")
    parser.add_argument("folder", nargs="?", type=Path, metavar="FOLDER", help="what to upload")
    parser.add_argument("--model", help="export this folder or Hub id, and upload that")
    parser.add_argument("--adapter", help="with this adapter merged in")
    parser.add_argument("--private", action="store_true", help="make the repository private")
    parser.add_argument("--revision", help="branch to write to (default: main)")
    parser.add_argument("--message", help="of the commit")
    parser.add_argument(
        "--dry-run", action="store_true", help="print what would go up, and contact nobody"
    )
    parser.set_defaults(run=_push)


def _add_decoding_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("decoding (a checkpoint may bring other defaults)")
    group.add_argument("--max-new-tokens", type=int, default=128, help="masks to fill (128)")
    group.add_argument("--seed", type=int, help="of the random choices (default: a new one)")
    group.add_argument("--system", help="system message of the chat template")
    group.add_argument("--no-live", action="store_true", help="no live view in a terminal")
    add_settings(group, SamplingConfig, "--", {"steps": "one per mask"})
    group = parser.add_argument_group("soft-masking (default: what the checkpoint brings)")
    group.add_argument("--no-soft-mask", action="store_true", help="decode plainly")
    defaults = {f.name: "the checkpoint's" for f in dataclasses.fields(SoftMaskConfig)}
    add_settings(group, SoftMaskConfig, "--soft-mask-", defaults)


def _soft_mask(args: argparse.Namespace, own: SoftMaskConfig | None) -> SoftMaskConfig | None:
    """The checkpoint's soft-mask parameters with what the command line changes."""
    changes = given(args, SoftMaskConfig)
    if args.no_soft_mask:
        if changes:
            raise ValueError("--no-soft-mask and a --soft-mask option contradict each other")
        return None
    if not changes:
        return own
    if own is None and "scale" not in changes:
        raise ValueError("this checkpoint has no soft-mask parameters: give --soft-mask-scale too")
    return dataclasses.replace(own or SoftMaskConfig(), **changes)


def _prompt(args: argparse.Namespace) -> str:
    """The prompt from where it stands: --infill, argument, --file or standard input."""
    sources = [args.prompt is not None, args.file is not None, isinstance(args.infill, str)]
    if sum(sources) > 1:
        raise ValueError("give one prompt: as an argument, by --file or by --infill")
    if isinstance(args.infill, str):
        text = args.infill
        for escape, char in ESCAPES.items():
            text = text.replace(escape, char)
        return text
    if args.file is not None:
        if not args.file.is_file():
            raise ValueError(f"there is no file {args.file}")
        return _decode(args.file.read_bytes(), str(args.file))
    if args.prompt not in (None, "-"):
        return args.prompt
    if args.prompt is None and sys.stdin.isatty():
        raise ValueError('say what to write: softmask generate "One day, Tom"')
    return _decode(sys.stdin.buffer.read(), "standard input").rstrip("\n")


def _decode(raw: bytes, where: str) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} is not UTF-8 (byte {error.start}): convert it first") from error


def _generate(args: argparse.Namespace, _argv: list[str]) -> int:
    if args.json and args.stream:
        raise ValueError("--json and --stream contradict each other")
    if args.stream and args.num_return_sequences > 1:
        raise ValueError("--stream shows one text: leave out -n")
    recording = is_recording(args)
    prompt = _prompt(args)
    checkpoint = load_model(args)
    run = _generation(args, checkpoint, prompt, infill=args.infill is not None, raw=args.raw)
    if recording:
        print(record_run(args, run))
        return 0
    if args.stream:
        _stream(run)
        return 0
    _drain(run, args)
    settings = {"sampling": dataclasses.asdict(run.sampling)}
    settings["soft_mask"] = dataclasses.asdict(run.soft_mask) if run.soft_mask else None
    for completion in run.completions():
        if args.json:
            print(json.dumps(dataclasses.asdict(completion) | {"settings": settings}))
        else:
            print(completion.text)
    return 0


def _generation(
    args: argparse.Namespace, checkpoint: Any, prompt: Any, *, infill: bool, raw: bool
) -> Any:
    from ..decoding.generation import Generation

    prompts = prompt if isinstance(prompt, str) else [prompt]
    return Generation(
        checkpoint,
        prompts,
        max_new_tokens=args.max_new_tokens,
        sampling=given(args, SamplingConfig),
        soft_mask=_soft_mask(args, checkpoint.soft_mask),
        seed=args.seed,
        num_return_sequences=getattr(args, "num_return_sequences", 1),
        chat=False if raw else None,
        system=args.system,
        infill=infill,
    )


def _drain(run: Any, args: argparse.Namespace) -> None:
    """Runs the steps, with the live view where somebody is watching."""
    if sys.stdout.isatty() and not args.no_live and not getattr(args, "json", False):
        from rich.console import Console

        from .live_view import LiveView

        with LiveView(run, Console()) as view:
            for step in run:
                view.show(step)


def _stream(run: Any) -> None:
    """Prints what is decided from the left; the pieces joined are the finished text."""
    shown = ""
    for step in run:
        text = run.decided(step)
        if text.startswith(shown):
            print(text[len(shown) :], end="", flush=True)
            shown = text
    print(run.completions()[0].text[len(shown) :])


def _chat(args: argparse.Namespace, _argv: list[str]) -> int:
    from ..decoding.prompts import has_chat_template

    checkpoint = load_model(args)
    if not has_chat_template(checkpoint):
        raise ValueError(
            "this model has no chat template: use `softmask generate`, or --model with an "
            "Instruct model"
        )
    messages: list[dict[str, str]] = []
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return 0
        if line == "/exit":
            return 0
        if line == "/clear":
            messages = []
        elif line:
            messages.append({"role": "user", "content": line})
            run = _generation(args, checkpoint, messages, infill=False, raw=False)
            _drain(run, args)
            answer = run.completions()[0].text
            print(answer, flush=True)
            messages.append({"role": "assistant", "content": answer})


def _demo(args: argparse.Namespace, _argv: list[str]) -> int:
    from .demo import run

    return run(args)


def _train(args: argparse.Namespace, _argv: list[str]) -> int:
    from ..training.sweep import parse_seeds, run_name, runs_of, sweep

    if (args.recipe is None) == (args.published is None):
        raise ValueError("give a recipe, or --published with two files")
    if args.seeds is not None and args.seed is not None:
        raise ValueError("give --seed or --seeds, not both")
    if args.twins and args.no_soft_mask:
        raise ValueError("--twins trains both: leave out --no-soft-mask")
    recipe = _recipe(args)
    seeds = [recipe.seed] if args.seeds is None else parse_seeds(args.seeds)
    runs = runs_of(recipe.twin() if args.no_soft_mask else recipe, seeds, args.twins)
    import torch

    from ..training.run import train

    set_threads(args.threads)

    def one(recipe: Any, folder: Path) -> Path:
        return train(recipe, folder, device=args.device, overwrite=args.overwrite)

    if args.seeds is None and not args.twins:
        one(runs[0], args.out or Path("runs") / run_name(runs[0]))
    else:
        sweep(runs, args.out or Path("runs"), one)
    if torch.distributed.is_initialized():
        # Else the process that leaves first takes the others' connection with it: they abort. And
        # all at once: one that still talks when another takes its end down aborts too.
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    return 0


def _recipe(args: argparse.Namespace) -> Any:
    """The recipe that the command line describes."""
    from ..training.recipe import override, read_recipe

    if args.published is None:
        recipe = read_recipe(args.recipe, args.set)
    else:
        from ..training.published_recipe import read_published_pair

        recipe, notes = read_published_pair(*args.published)
        for note in notes:
            print(f"softmask: {note}", file=sys.stderr)
        recipe = override(recipe, args.set)
    return recipe if args.seed is None else dataclasses.replace(recipe, seed=args.seed)


def _bench(_args: argparse.Namespace, argv: list[str]) -> int:
    from ..bench.benchmark import main as bench

    return bench(argv)


def _eval(_args: argparse.Namespace, argv: list[str]) -> int:
    from .evaluate import main as evaluate

    return evaluate(argv)


def _lm_eval(_args: argparse.Namespace, argv: list[str]) -> int:
    from .evaluate import lm_eval

    return lm_eval(argv)


def _export(args: argparse.Namespace, _argv: list[str]) -> int:
    from ..hub.export import export

    folder = export(
        args.target,
        args.model,
        args.adapter,
        revision=args.revision,
        dtype=args.dtype,
        overwrite=args.overwrite,
    )
    print(f"the model is in {folder}")
    return 0


def _push(args: argparse.Namespace, _argv: list[str]) -> int:
    from ..hub.push import push

    address = push(
        args.repo,
        args.folder,
        model=args.model,
        adapter=args.adapter,
        private=args.private,
        revision=args.revision,
        message=args.message,
        dry_run=args.dry_run,
    )
    if address is not None:
        print(address)
    return 0


if __name__ == "__main__":
    sys.exit(main())
