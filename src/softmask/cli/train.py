"""softmask train: on your own chats, or by a recipe; one run, or several.

Fine-tunes a model on your own chats (--data), or trains by a recipe: mix and coding are the
published fine-tunings of Dream and Dream-Coder, the others pretrain small models from nothing. A
run that was stopped goes on where it was, and a finished one goes on when it is asked for more
updates. On several GPUs: torchrun --nproc_per_node 4 -m softmask train mix.

    softmask train --model Dream-org/Dream-v0-Instruct-7B --data chats.jsonl --dry-run
    softmask train --model Dream-org/Dream-v0-Instruct-7B --data chats.jsonl --iters 300
    softmask train mix
"""

from __future__ import annotations

import argparse
import gc
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import launcher
from ..reporting.progress import progress
from ..reporting.words import tell
from ..settings import changed
from ..training.config import TRAINED_ON
from .options import add_family_option, new_parser, path_of, set_threads
from .rule_options import add_rules_option


def make_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = new_parser("train", __doc__)
    parser.add_argument("recipe", nargs="?", help="name of a bundled recipe, or a YAML file")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="say what the chats were taken for, show one, estimate time and memory; train nothing",
    )
    _add_data_options(parser.add_argument_group("your own chats"))
    parser.add_argument(
        "--published",
        nargs=2,
        type=path_of,
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
    parser.add_argument(
        "--no-soft-mask", action="store_true", help="the plain twin: without soft-masking"
    )
    parser.add_argument("--seed", type=int, help="of weights, data and masks")
    parser.add_argument("--seeds", help="a run for each, one after another: 1231-1235 or 1,2,3")
    parser.add_argument("--twins", action="store_true", help="each also without soft-masking")
    parser.add_argument(
        "--out",
        type=path_of,
        help="folder of the run (default: runs/NAME-seedSEED); with --seeds, --twins: of all",
    )
    parser.add_argument("--overwrite", action="store_true", help="delete an earlier run there")
    parser.add_argument("--device", help="cpu, or the accelerator (default: the best there is)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: all)")
    add_rules_option(parser)
    return parser


def _add_data_options(group: Any) -> None:
    """What stands in a recipe for whoever writes none; names as in other trainers."""
    group.add_argument(
        "--data",
        nargs="+",
        action="extend",
        metavar="DATA",
        help="json, jsonl, csv or parquet file, a folder of them, or a Hub id: conversations, "
        "pairs of columns such as prompt and completion, or plain text",
    )
    group.add_argument(
        "--valid", metavar="DATA", help="for validation (default: 10 %% of the rows)"
    )
    group.add_argument("--prompt-column", help="column of questions, where its name is not known")
    group.add_argument("--response-column", help="with it: the column of answers")
    group.add_argument("--messages-column", help="or: the column of whole conversations")
    group.add_argument(
        "--model", help="folder or Hub id to fine-tune (default: the bundled, for texts)"
    )
    add_family_option(group)
    group.add_argument("--iters", type=int, help="updates (default: three passes over the data)")
    group.add_argument("--batch-size", type=int, help="rows an update, one at a time (8)")
    group.add_argument("--learning-rate", type=float, help="after the warm-up (1e-4)")
    group.add_argument("--rank", type=int, help="of the DoRA adapter (16)")
    group.add_argument("--max-length", type=int, help="longer rows are left out, in tokens (2048)")
    group.add_argument(
        "--train-on", choices=TRAINED_ON, help="the last answer of a conversation, or all (last)"
    )
    group.add_argument(
        "--mask-prompt",
        action=argparse.BooleanOptionalAction,
        help="train on answers alone, or on what precedes them too (on)",
    )


# Options that change a recipe: the part of it that each belongs to, and the setting.
OF_RECIPE = {"iters": ("train", "steps"), "seed": (None, "seed")}
OF_DATA = {
    "batch_size": ("train", "accumulation"),
    "learning_rate": ("train", "learning_rate"),
    "rank": ("adapter", "r"),
    "max_length": ("conversations", "max_length"),
    "train_on": ("conversations", "train_on"),
    "mask_prompt": ("conversations", "mask_prompt"),
}
# And those that say which rows: settings of a source.
OF_SOURCE = {
    "valid": "validation",
    "messages_column": "messages_column",
    "prompt_column": "prompt_column",
    "response_column": "response_column",
}


def run(args: argparse.Namespace, argv: list[str]) -> int:
    """Runs the command with parsed arguments."""
    try:
        return _run(args)
    except KeyboardInterrupt:
        if launcher.rank() == 0:
            # With --overwrite it would delete what was just kept, or a sweep's finished runs.
            words = [*launcher.command(), *(word for word in argv if word != "--overwrite")]
            # In a terminal on a line of its own, which is copied as one.
            end = "\n" if sys.stderr.isatty() else " "
            print("go on with:", shlex.join(words), sep=end, file=sys.stderr)
        raise


def _run(args: argparse.Namespace) -> int:
    from ..training.sweep import parse_seeds, run_name, runs_of, sweep

    if args.data is not None:
        if len(args.data) > 1:
            raise ValueError(
                f"--data is one file or folder, not {len(args.data)}: put {', '.join(args.data)} "
                "into a folder and give that, or name each as a source in a recipe"
            )
        (args.data,) = args.data
    given = [value is not None for value in (args.recipe, args.published, args.data)]
    if sum(given) != 1:
        raise ValueError(
            "give one of --data with your chats, a recipe, or --published: "
            "`softmask train --data chats.jsonl --dry-run` looks at a file of chats"
        )
    if args.data is None:
        for name in ("model", "family", *OF_SOURCE, *OF_DATA):
            if getattr(args, name) is not None:
                raise ValueError(f"{_typed(name)} is for --data: a recipe is changed by --set")
    elif (args.prompt_column is None) != (args.response_column is None):
        raise ValueError("--prompt-column and --response-column go together: give both")
    if args.seeds is not None and args.seed is not None:
        raise ValueError("give --seed or --seeds, not both")
    if args.twins and args.no_soft_mask:
        raise ValueError("--twins trains both: leave out --no-soft-mask")
    recipe = _recipe(args)
    seeds = [recipe.seed] if args.seeds is None else parse_seeds(args.seeds)
    runs = runs_of(recipe.twin() if args.no_soft_mask else recipe, seeds, args.twins)
    set_threads(args.threads)
    import torch

    from ..training.run import train
    from ..training.run_folder import going_on, is_finished

    out = args.out or Path("runs")
    is_one = args.seeds is None and not args.twins
    folders = [out / run_name(run) for run in runs]
    if is_one and args.out is not None:
        folders = [args.out]
    # Nothing is ahead of a run that is finished, unless it is asked for more.
    is_more = args.overwrite or args.iters is not None
    ahead = [i for i, folder in enumerate(folders) if is_more or not is_finished(folder)]
    is_told = args.data is not None and ahead and launcher.rank() == 0
    if args.dry_run or is_told:
        first = ahead[0] if ahead else 0
        run = runs[first] if args.overwrite else going_on(folders[first], runs[first])
        _preview(run, args.device, is_all=args.dry_run)
    if args.dry_run:
        return 0

    def one(recipe: Any, folder: Path) -> Path:
        return train(recipe, folder, device=args.device, overwrite=args.overwrite, report=_report)

    if is_one:
        one(runs[0], folders[0])
    else:
        sweep(runs, out, one, _report)
    if torch.distributed.is_initialized():
        # Else the process that leaves first takes the others' connection with it: they abort. And
        # all at once: one that still talks when another takes its end down aborts too.
        torch.distributed.barrier()
        # The trainer is a cycle, and its DistributedDataParallel keeps the group: freed with it as
        # Python ends, the group waits for threads of gloo that wait for Python. They hang or abort.
        gc.collect()
        torch.distributed.destroy_process_group()
    return 0


def _report(line: str) -> None:
    tell(line, sys.stdout)


def _recipe(args: argparse.Namespace) -> Any:
    """The recipe that the command line describes."""
    from ..training.recipe import override, read_recipe

    if args.data is not None:
        from ..training.own_data import shared_out

        recipe = _with_options(_recipe_for_data(args), args, OF_DATA)
        recipe = override(shared_out(recipe), args.set)
    elif args.published is None:
        recipe = read_recipe(args.recipe, args.set)
    else:
        from ..training.published_recipe import read_published_pair

        recipe, notes = read_published_pair(*args.published)
        for note in notes:
            print(f"softmask: {note}", file=sys.stderr)
        recipe = override(recipe, args.set)
    return _with_options(recipe, args, OF_RECIPE)


def _with_options(
    recipe: Any, args: argparse.Namespace, options: Mapping[str, tuple[str | None, str]]
) -> Any:
    """The recipe with what options change; what it refuses is named as it was typed."""
    for option, (part, name) in options.items():
        value = getattr(args, option)
        if value is None:
            continue
        if part is None:
            recipe = changed(recipe, name, value, _typed(option))
        else:
            own = changed(getattr(recipe, part), name, value, _typed(option))
            recipe = changed(recipe, part, own, _typed(option))
    return recipe


def _typed(option: str) -> str:
    return f"--{option.replace('_', '-')}"


def _recipe_for_data(args: argparse.Namespace) -> Any:
    import torch

    from ..training.own_data import recipe_for
    from ..training.training_arguments import chosen_cpu

    return recipe_for(
        args.data,
        model=args.model,
        family=args.family,
        source={name: getattr(args, option) for option, name in OF_SOURCE.items()},
        bfloat16=torch.cuda.is_available() and not chosen_cpu(args.device),
    )


def _preview(recipe: Any, device: str | None, *, is_all: bool) -> None:
    """Says what the data was taken for, shows a row, and estimates time and memory.

    Args:
        is_all: no run follows, which would say itself what is kept and what is left out.
    """
    from rich.console import Console

    from ..hub.load import choose_device
    from ..training.inputs import silent
    from ..training.own_data import in_brackets, preview
    from ..training.training_arguments import chosen_cpu

    console = Console(highlight=False)
    where = choose_device("cpu" if chosen_cpu(device) else None)
    told: list[str] = []  # below the display, which a line would tear
    with progress("reading the data"):
        seen = preview(recipe, where, told.append if is_all else silent)
    for line in [*told, *seen.forms]:
        _report(line)
    print("a row as the model sees it; what is trained is", end=" ")
    if console.is_terminal:
        console.print("[bold green]green[/]:")
        console.print(seen.example, soft_wrap=False)
    else:
        print(f"in double brackets:\n{in_brackets(seen.example)}")
    _report(seen.estimate)
