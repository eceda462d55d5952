"""softmask eval ... | eval suite | eval ppl | eval samples | eval compare

Reads the command line; torch and lm_eval are imported when something runs.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import sys
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from ..config import BUNDLED, from_mapping
from ..evaluation.config import EvalConfig, ModelArgs, model_args
from ..evaluation.suites import MODES, SUITES
from .options import add_model_options, add_settings, given, set_threads

# Fields of ModelArgs that have options of their own here.
PLACED = (
    *("pretrained", "adapter", "revision", "device", "dtype", "device_map", "quantize"),
    *("softmasking", "trust_remote_code"),
)
DESCRIPTION = """\
Evaluates a model on tasks of lm-evaluation-harness, upstream's and those in this package.

    softmask eval --tasks gsm8k_cot --model BASE --adapter ADAPTER --apply-chat-template
    softmask eval suite dream --model BASE --adapter ADAPTER --confirm-run-unsafe-code
    softmask eval compare evals/dream/binary evals/dream/soft
    softmask eval ppl --data held_out.txt
    softmask eval samples --scorer gpt2

`softmask eval suite -h`, `ppl -h`, `samples -h` and `compare -h` explain those. A run that was
stopped goes on by the same command; several GPUs: torchrun --nproc_per_node 4 -m softmask eval ...
"""


def main(argv: Sequence[str]) -> int:
    """Runs `softmask eval` with what stands behind it on the command line."""
    commands: dict[str, tuple[Callable, Callable]] = {
        "suite": (_suite_parser, _suite),
        "compare": (_compare_parser, _compare),
    }
    if argv and argv[0] in ("ppl", "samples"):
        from . import texts as text_cli

        commands["ppl"] = (text_cli.ppl_parser, text_cli.ppl)
        commands["samples"] = (text_cli.samples_parser, text_cli.samples)
    name = argv[0] if argv and argv[0] in commands else None
    make_parser, run = (_run_parser, _run) if name is None else commands[name]
    parser = make_parser()
    args = parser.parse_args(argv if name is None else argv[1:])
    command = ["softmask", "eval", *argv]
    if name != "compare":
        set_threads(args.threads)
    return run(args, command)


def lm_eval(argv: Sequence[str]) -> int:
    """The harness' own command line, with this model and our tasks.

    Raises:
        ValueError: lm_eval is not installed.
    """
    need_lm_eval()
    from lm_eval.__main__ import cli_evaluate

    from ..evaluation import harness
    from ..evaluation.tasks import FOLDER

    argv = list(argv)
    runs = argv[:1] == ["run"] or (argv and argv[0].startswith("--"))
    if runs and "--include_path" not in argv and "--help" not in argv:
        argv += ["--include_path", str(FOLDER)]
    sys.argv = ["lm_eval", *argv]
    assert harness.SoftMaskLM  # registered by being imported
    cli_evaluate()
    return 0


# Parsers


def _run_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="softmask eval",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--tasks", required=True, help="names, with commas between them")
    parser.add_argument("--num-fewshot", type=int, help="examples in the prompt")
    parser.add_argument("--apply-chat-template", action="store_true", help="prompts as chats")
    parser.add_argument(
        "--no-fewshot-as-multiturn",
        action="store_true",
        help="with a chat template: all examples in one turn",
    )
    parser.add_argument("--include-path", help="a folder with further tasks (YAML)")
    parser.add_argument("--gen-kwargs", help="generation arguments over the tasks': a=1,b=2")
    _add_shared(parser)
    add_model(parser)
    return parser


def _suite_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="softmask eval suite",
        description="Runs a named suite, plainly and soft-masked, at several numbers of forwards, "
        "and prints its table: "
        + "; ".join(f"{name}: {suite.title}" for name, suite in SUITES.items())
        + ".",
    )
    parser.add_argument("suite", choices=sorted(SUITES))
    parser.add_argument("--tasks", help="only these of the suite, with commas between them")
    parser.add_argument("--modes", default=",".join(MODES), help="binary, soft, or both (default)")
    parser.add_argument("--fractions", help="forwards for each token: 1,1/2,1/4 (default: all)")
    parser.add_argument(
        "--binary-adapter",
        help="decode the binary cells with this adapter (fine-tuned without soft-masking), and "
        "not with --adapter, soft-masking off",
    )
    _add_shared(parser)
    add_model(parser)
    return parser


def _add_shared(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--limit", type=int, help="only the first so many of each task")
    parser.add_argument("--system-instruction", help="a system message")
    parser.add_argument("--data-dir", help="read the data from files in this folder")
    parser.add_argument(
        "--confirm-run-unsafe-code",
        action="store_true",
        help="allow tasks that run, in a sandbox, the programs that the model writes",
    )
    add_out(parser)


def add_out(parser: argparse.ArgumentParser) -> None:
    """Where the record goes."""
    parser.add_argument("--out", type=Path, help="folder of the record (default: in evals/)")
    parser.add_argument("--overwrite", action="store_true", help="delete an earlier record there")


def add_model(parser: argparse.ArgumentParser, leave_out: tuple[str, ...] = ()) -> None:
    """The model and its settings, but for some."""
    add_model_options(parser)
    group = parser.add_argument_group("settings of the model (they win over a task's own)")
    group.add_argument(
        "--soft-mask",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="require soft-masking, or turn it off (default: what the checkpoint brings)",
    )
    unset = {f.name: "" for f in dataclasses.fields(ModelArgs) if f.default is None}
    add_settings(group, ModelArgs, "--", unset, PLACED + leave_out)
    group.add_argument("--model-args", default="", help="the same in the harness' form: a=1,b=2")


def _compare_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="softmask eval compare",
        description="Paired differences of two evaluations, or of two folders of them, with 95 % "
        "bootstrap intervals, and accuracy against forwards as a PNG.",
    )
    parser.add_argument("a", type=Path, metavar="A")
    parser.add_argument("b", type=Path, metavar="B")
    parser.add_argument("--plot", type=Path, help="the PNG to draw")
    parser.add_argument("--json", action="store_true", help="the last line is JSON")
    return parser


# Commands


def _run(args: argparse.Namespace, command: list[str]) -> int:
    model = read_model_args(args)
    tasks = tuple(args.tasks.split(","))
    config = _config(args, tasks)
    folder = args.out or Path("evals") / _name(model, tasks)
    from rich.console import Console

    need_lm_eval()
    from ..evaluation.evaluate import check_tasks, evaluate, table_of

    check_tasks(config)
    lm = _load(model)
    rows = evaluate(
        lm, model, config, folder, command=command, overwrite=args.overwrite, report=_report(lm)
    )
    if lm.ranks.index == 0:
        Console().print(table_of(rows, _title(lm)))
        print(folder)
    lm.ranks.leave()
    return 0


def _suite(args: argparse.Namespace, command: list[str]) -> int:
    from rich.console import Console

    from ..evaluation.suites import cells, suite_table

    suite = SUITES[args.suite]
    model, config = read_model_args(args), _config(args, (suite.parts[0].task,))
    work = cells(
        suite,
        model,
        config,
        modes=args.modes.split(","),
        fractions=_fractions(args.fractions),
        tasks=args.tasks.split(",") if args.tasks else None,
    )
    out = args.out or Path("evals") / args.suite
    need_lm_eval()
    from ..evaluation.evaluate import check_tasks, evaluate

    check_tasks(dataclasses.replace(config, tasks=tuple(cell.part.task for cell in work)))
    found, lm, loaded = [], None, None
    work.sort(key=lambda cell: MODES.index(cell.mode))
    for number, cell in enumerate(work, 1):
        own = cell.args
        if cell.mode == "binary" and args.binary_adapter is not None:
            own = dataclasses.replace(own, adapter=args.binary_adapter)
        if lm is None or loaded != own.adapter:
            lm = None  # before the next one is there
            lm, loaded = _load(own), own.adapter
        say = _report(lm)
        say(f"{number}/{len(work)}  {cell.folder}")
        rows = evaluate(
            *(lm, own, cell.config, out / cell.folder),
            command=command,
            overwrite=args.overwrite,
            report=say,
        )
        found.append((cell, rows))
    if lm.ranks.index == 0:
        Console().print(suite_table(suite, found))
        print(out)
    lm.ranks.leave()
    return 0


def _compare(args: argparse.Namespace, _command: list[str]) -> int:
    from rich.console import Console

    from ..evaluation.compare import compare, draw, table_of

    differences = compare(args.a, args.b)
    Console().print(table_of(differences))
    if args.plot is not None:
        draw(args.a, args.b, args.plot)
        print(args.plot)
    if args.json:
        print(json.dumps([dataclasses.asdict(d) for d in differences]))
    return 0


# From options to settings


def read_model_args(args: argparse.Namespace) -> ModelArgs:
    """The settings of `add_model` that the command line names.

    Raises:
        ValueError: an unknown or contradictory one.
    """
    values = given(args, ModelArgs)
    own = {
        "pretrained": args.model,
        "adapter": args.adapter,
        "revision": args.revision,
        "device": args.device,
        "dtype": args.dtype,
        "device_map": args.device_map,
        "quantize": args.quantize,
        "softmasking": args.soft_mask,
    }
    values |= {name: value for name, value in own.items() if value is not None}
    return model_args(_pairs(args.model_args) | values)


def _pairs(text: str) -> dict[str, Any]:
    """a=1,b=x, as the harness reads it.

    Raises:
        ValueError: a piece without `=`.
    """
    if not text:
        return {}
    need_lm_eval()
    from lm_eval.utils import simple_parse_args_string

    broken = [piece for piece in text.split(",") if "=" not in piece]
    if broken:
        raise ValueError(f"write settings as NAME=VALUE with commas between, not {broken[0]!r}")
    return simple_parse_args_string(text)


def _config(args: argparse.Namespace, tasks: tuple[str, ...]) -> EvalConfig:
    values = {
        "tasks": tasks,
        "limit": args.limit,
        "system_instruction": args.system_instruction,
        "confirm_run_unsafe_code": args.confirm_run_unsafe_code,
        "data_dir": args.data_dir,
    }
    if hasattr(args, "gen_kwargs"):
        values |= {
            "num_fewshot": args.num_fewshot,
            "apply_chat_template": args.apply_chat_template,
            "fewshot_as_multiturn": not args.no_fewshot_as_multiturn,
            "gen_kwargs": _pairs(args.gen_kwargs or ""),
            "include_path": args.include_path,
        }
    return from_mapping(EvalConfig, values, "options")


def _fractions(text: str | None) -> list[Fraction] | None:
    if text is None:
        return None
    try:
        found = [Fraction(piece) for piece in text.split(",")]
    except (ValueError, ZeroDivisionError) as error:
        raise ValueError(f"write fractions as 1,1/2,1/4, not {text!r}") from error
    if not all(0 < fraction <= 1 for fraction in found):
        raise ValueError(f"fractions must lie in (0, 1], not {text}")
    return found


def need_lm_eval() -> None:
    """Raises ValueError where the harness is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise ValueError("evaluation needs lm_eval: pip install 'softmask[eval]'")


def _load(args: ModelArgs) -> Any:
    from ..evaluation.harness import SoftMaskLM

    return SoftMaskLM(**dataclasses.asdict(args))


def _report(lm: Any) -> Callable[[str], None]:
    """Says things once, however many processes there are."""

    def say(line: str) -> None:
        if lm.ranks.index == 0:
            print(line, file=sys.stderr)

    return say


def _name(model: ModelArgs, tasks: tuple[str, ...]) -> str:
    """model-tasks, and -soft or -plain where that is said."""
    who = Path(model.adapter or model.pretrained or BUNDLED).name
    how = {None: "", True: "-soft", False: "-plain"}[model.softmasking]
    return f"{who}-{'+'.join(tasks)[:80]}{how}"


def _title(lm: Any) -> str:
    soft = lm.soft_mask
    how = "plain" if soft is None else f"soft-masked, k={soft.k}, scale {soft.scale:.3g}"
    return f"{lm.checkpoint.name}, {how}"
