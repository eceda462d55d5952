"""What the commands of `softmask eval` share: the model's options, the record's, reading both."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..config import BUNDLED, from_mapping, require
from ..evaluation.config import OWN_NAMES, EvalConfig, ModelArgs, field_names, model_args
from ..evaluation.templates import JINJA, SHIPPED, YAML, Template, read_templates
from ..reporting.progress import progress
from ..reporting.words import tell
from ..training.config import RECIPE
from .options import add_model_options, add_settings, given, path_of

# Fields of ModelArgs that have options of their own here.
PLACED = (
    *("pretrained", "adapter", "revision", "family", "device", "dtype", "device_map", "quantize"),
    *("softmasking", "trust_remote_code"),
)


def add_task_options(parser: argparse.ArgumentParser) -> None:
    """What is evaluated, beside the tasks themselves."""
    parser.add_argument("--limit", type=int, help="only the first so many of each task")
    parser.add_argument("--system-instruction", help="a system message")
    parser.add_argument("--data-dir", help="read the data from files in this folder")
    parser.add_argument(
        "--confirm-run-unsafe-code",
        action="store_true",
        help="allow tasks that run, in a sandbox, the programs that the model writes",
    )
    add_record_options(parser)


def add_prompt_options(parser: argparse.ArgumentParser) -> None:
    """How tasks are put to the model, and where further ones are."""
    parser.add_argument("--num-fewshot", type=int, help="examples in the prompt")
    parser.add_argument("--apply-chat-template", action="store_true", help="prompts as chats")
    parser.add_argument(
        "--no-fewshot-as-multiturn",
        action="store_true",
        help="with a chat template: all examples in one turn",
    )
    parser.add_argument("--include-path", help="a folder with further tasks (YAML)")
    parser.add_argument("--gen-kwargs", help="generation arguments over the tasks': a=1,b=2")


def add_template_option(parser: argparse.ArgumentParser) -> None:
    """Several ways of putting the tasks to the model."""
    parser.add_argument(
        "--templates",
        metavar="NAMES",
        help=f"once under each of several chat templates and system messages, and the spread of "
        f"the score over them: of {', '.join(SHIPPED)}; all; or files ({', '.join(YAML + JINJA)})",
    )


def read_template_option(args: argparse.Namespace) -> list[Template]:
    """The templates of the command line; none where one prompt is meant.

    Raises:
        ValueError: what says how prompts are put is given twice, or a template is none.
    """
    if args.templates is None:
        return []
    for option in ("apply_chat_template", "system_instruction"):
        require(
            not getattr(args, option, None),
            f"--templates and --{option.replace('_', '-')} contradict each other: each template "
            "says both",
        )
    return read_templates(args.templates)


def add_record_options(parser: argparse.ArgumentParser) -> None:
    """Where the record goes."""
    parser.add_argument("--out", type=path_of, help="folder of the record (default: in evals/)")
    parser.add_argument("--overwrite", action="store_true", help="delete an earlier record there")


def add_eval_model(
    parser: argparse.ArgumentParser, leave_out: tuple[str, ...] = (), *, soft_mask: bool = True
) -> None:
    """The model and its settings, but for some; `soft_mask` whether soft-masking is a choice."""
    add_model_options(parser)
    group = parser.add_argument_group("settings of the model (they win over a task's own)")
    if soft_mask:
        group.add_argument(
            "--soft-mask",
            action=argparse.BooleanOptionalAction,
            default=None,
            help="require soft-masking, or turn it off (default: what the checkpoint brings)",
        )
    unset = {f.name: "" for f in dataclasses.fields(ModelArgs) if f.default is None}
    # Under our names; the published ones are accepted too.
    names = {field: [own, field] for field, own in OWN_NAMES.items()}
    add_settings(group, ModelArgs, "--", unset, PLACED + leave_out, names)
    group.add_argument("--model-args", default="", help="the same in the harness' form: a=1,b=2")


def read_model_args(args: argparse.Namespace) -> ModelArgs:
    """The settings of `add_model` that the command line names.

    Raises:
        ValueError: an unknown or contradictory one.
    """
    return model_args(named_model_args(args))


def named_model_args(args: argparse.Namespace) -> dict[str, Any]:
    """What the command line names of them, under the fields' own names."""
    values = given(args, ModelArgs)
    own = {
        "pretrained": args.model,
        "adapter": args.adapter,
        "revision": args.revision,
        "family": args.family,
        "device": args.device,
        "dtype": args.dtype,
        "device_map": args.device_map,
        "quantize": args.quantize,
        "softmasking": getattr(args, "soft_mask", None),
    }
    values |= {name: value for name, value in own.items() if value is not None}
    return field_names(read_pairs(args.model_args) | values)


def read_pairs(text: str) -> dict[str, Any]:
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


def read_config(args: argparse.Namespace, tasks: tuple[str, ...]) -> EvalConfig:
    """The settings of `add_task_options` that the command line names, for these tasks."""
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
            "gen_kwargs": read_pairs(args.gen_kwargs or ""),
            "include_path": args.include_path,
        }
    return from_mapping(EvalConfig, values, "options")


def name_of_record(model: ModelArgs, tasks: tuple[str, ...]) -> str:
    """model-tasks, and -soft or -plain where that is said."""
    subject = run_or_folder(Path(model.adapter or model.pretrained or BUNDLED))
    how = {None: "", True: "-soft", False: "-plain"}[model.softmasking]
    return f"{subject}-{'+'.join(tasks)[:80]}{how}"


def run_or_folder(path: Path) -> str:
    """The name of a model in a result: of the run that made it, as all runs' are called alike."""
    run = path.resolve().parent
    return run.name if path.is_dir() and (run / RECIPE).is_file() else path.name


def need_lm_eval() -> None:
    """Raises ValueError where the harness is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise ValueError("evaluation needs lm_eval: pip install 'softmask[eval]'")


def load_lm(args: ModelArgs) -> Any:
    """The harness' model of these settings, loaded."""
    with progress("loading the model"):
        from ..evaluation.harness import SoftMaskLM

        return SoftMaskLM(**dataclasses.asdict(args))


def logger_of(lm: Any) -> Callable[[str], None]:
    """Says things once, however many processes there are."""

    def say(line: str) -> None:
        if lm.ranks.index == 0:
            tell(line, sys.stderr)

    return say
