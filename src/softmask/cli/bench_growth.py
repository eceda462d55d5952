"""softmask bench growth: cost a token and memory against length and batch, for each cache.

A block in the middle of a text is timed, and its peak memory read in a process of its own. The
exponents say how cost grows: 0 not at all, 1 with the length.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import TYPE_CHECKING

from ..bench.choices import BLOCK, BLOCK_STEPS, MODES
from ..reporting.clocks import CLOCKS
from ..reporting.plots import need_matplotlib
from ..reporting.progress import progress
from ..reporting.words import count
from ..sampling import CACHES
from .options import choices_of, counts, new_parser, path_of

if TYPE_CHECKING:
    from ..bench.cells import Cell, Plan
    from ..models import DreamModel

TOKENS = (256, 512, 1024, 2048, 4096, 8192)
BATCHES = (1, 2, 4, 8, 16)


def make_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = new_parser("bench growth", __doc__)
    parser.add_argument("--shape", default="small", help="whose network (default: a small one)")
    parser.add_argument("--layers", type=int, default=2, help="its layers (default 2)")
    parser.add_argument("--tokens", type=counts, default=TOKENS, help="lengths (256,...,8192)")
    parser.add_argument("--batch", type=counts, default=BATCHES, help="batches (1,2,4,8,16)")
    parser.add_argument("--batch-tokens", type=int, default=512, help="their length (512)")
    parser.add_argument("--cache", type=choices_of(CACHES), default=CACHES, help="default: all")
    parser.add_argument("--modes", choices=MODES, default="topk", help="feedback (default topk)")
    parser.add_argument("--block-length", type=int, default=BLOCK, help=f"default {BLOCK}")
    parser.add_argument("--block-steps", type=int, default=BLOCK_STEPS, help="steps a block (8)")
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="processor: on a machine that is not quiet"
    )
    parser.add_argument("--repeat", type=int, default=3, help="rounds (default 3)")
    parser.add_argument("--device", help="cpu, cuda, mps (default: the best)")
    parser.add_argument("--dtype", help="float32, bfloat16 (default: by device)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: all)")
    parser.add_argument("--out", type=path_of, help="write result.json, table.txt and a plot here")
    parser.add_argument("--json", action="store_true", help="the last line is JSON, for scripts")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    return parser


def run(args: argparse.Namespace, argv: list[str]) -> int:
    """Runs the command with parsed arguments; `argv` repeats them for the children."""
    for name, value in vars(args).items():
        if type(value) is int and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1")

    import torch
    from rich.console import Console

    from ..bench.cells import Plan
    from ..bench.growth import cells_of, curves, fits, tables_of
    from ..bench.growth import run as measure_growth
    from ..bench.growth_plot import PLOT, draw
    from ..hub.load import choose_device
    from ..reporting.measure import check_clock, peak_of
    from ..reporting.result_folder import claim, write

    plan = Plan(args.block_length, args.block_steps)
    cells = cells_of(args.cache, args.tokens, args.batch, args.batch_tokens, args.modes)
    for cell in cells:
        plan.check(cell)
    check_clock(args.clock, choose_device(args.device))
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    if args.only is None and args.out is not None:
        need_matplotlib()
        claim(args.out)
    with progress("random weights") as shown:
        model = _model(args, max(cell.tokens for cell in cells))
        if args.only is not None:
            return _peak(model, plan, args.only)
        shown.update("timing")

        def peak(cell: Cell | None) -> float:
            only = json.dumps(cell and dataclasses.asdict(cell))
            return peak_of("softmask", [*argv, "--only", only])

        rows = measure_growth(model, cells, plan, shown.update, peak, args.repeat, args.clock)
    at = args.batch_tokens
    where = f"{model.device.type}, {count(torch.get_num_threads(), 'thread')}, {args.clock} time"
    title = f"{args.shape}, {args.layers} layers, {args.modes}, blocks of {plan.block}\n{where}"
    tables = tables_of(rows, at, title)
    for table in tables:
        Console().print(table)
    exponents = {
        axis: {
            cache: {key: dataclasses.asdict(one) for key, one in own.items()}
            for cache, own in by_cache.items()
        }
        for axis, by_cache in fits(curves(rows, at)).items()
    }
    settings = {k: str(v) if k == "out" else v for k, v in vars(args).items() if v is not None}
    result = {"settings": settings, "rows": rows, "exponents": exponents}
    if args.out is not None:
        draw(rows, at, args.out / PLOT, title)
        write(args.out, ["softmask", *argv], result, tables)
    if args.json:
        print(json.dumps(result))
    return 0


def _model(args: argparse.Namespace, positions: int) -> DreamModel:
    import torch

    from ..bench.shapes import choose_shape, random_model
    from ..hub.load import choose_device, choose_dtype

    shape, device = choose_shape(args.shape), choose_device(args.device)
    if args.layers > shape.layers:
        raise ValueError(f"--layers must lie between 1 and {shape.layers}, the shape's own")
    dtype = choose_dtype(args.dtype, device)
    chosen = torch.float32 if isinstance(dtype, str) else dtype
    return random_model(shape, args.layers, positions, chosen, device)


def _peak(model: DreamModel, plan: Plan, only: str) -> int:
    """Prints what this process needs at most for a block of a cell, or without one."""
    from ..bench.cells import Cell
    from ..bench.shapes import part
    from ..reporting.measure import peak_mb

    values = json.loads(only)
    if values is not None:
        cell = Cell(**values)
        size = plan.block if cell.cache == "exact" else None
        made = plan.batch(part(model, model.config.num_hidden_layers, size), cell)
        for _ in range(2):
            made.step()
    print(json.dumps({"peak_mb": round(peak_mb(model.device.type), 1)}))
    return 0
