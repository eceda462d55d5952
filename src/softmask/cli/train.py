"""softmask train: one run by a recipe, or several (seeds, each with its plain twin).

Trains by a recipe: mix and coding are the published fine-tunings of Dream and Dream-Coder, the
others pretrain small models from nothing. A run that was stopped goes on where it was; what is
finished is not run again. On several GPUs: torchrun --nproc_per_node 4 -m softmask train mix.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

from .options import new_parser, set_threads


def make_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = new_parser("train", __doc__)
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
    parser.add_argument(
        "--no-soft-mask", action="store_true", help="the plain twin: without soft-masking"
    )
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
    return parser


def run(args: argparse.Namespace, _argv: list[str]) -> int:
    """Runs the command with parsed arguments."""
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
