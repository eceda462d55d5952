"""softmask bench --shape: a published shape with random weights, in cells beside the limit."""

from __future__ import annotations

import argparse
import json
from itertools import product
from typing import Any

import torch
from rich.console import Console

from ..bench.cells import Cell, Plan
from ..bench.choices import BLOCK
from ..bench.shape_bench import run as measure_shape
from ..bench.shape_bench import tables_of
from ..bench.shapes import Shape, choose_shape, kinds_of
from ..hub.load import choose_device
from ..reporting.measure import check_clock
from ..reporting.progress import progress
from ..reporting.result_folder import claim, write
from ..reporting.words import count
from ..sampling import CACHES

# A few minutes on two cores: more is asked for by lists.
TOKENS = (256,)
# The options of `softmask bench` that a shape has a use for.
USED = {
    *("shape", "layers", "tokens", "batch", "dtype", "cache", "modes", "block_length"),
    *("block_steps", "soft_mask_k", "clock", "repeat", "device", "threads", "out", "json"),
}


def run(args: argparse.Namespace, parser: argparse.ArgumentParser, argv: list[str]) -> int:
    """Runs `softmask bench --shape` with parsed arguments."""
    for name, value in vars(args).items():
        if name not in USED and value != parser.get_default(name):
            raise ValueError(f"--{name.replace('_', '-')} does not go with --shape: leave it out")
    shape = choose_shape(args.shape)
    layers = shape.default_layers if args.layers is None else args.layers
    if not 1 < layers <= shape.layers:
        raise ValueError(
            f"--layers must lie between 2 and {shape.layers}, the layers of {args.shape}: two "
            "depths say what a layer costs"
        )
    plan = Plan(args.block_length or BLOCK, args.block_steps or Plan.steps, args.soft_mask_k)
    caches, modes = args.cache or CACHES, args.modes
    cells = [Cell(*one) for one in product(caches, args.tokens or TOKENS, args.batch, modes)]
    for cell in cells:
        plan.check(cell)
    device = choose_device(args.device)
    check_clock(args.clock, device)
    kinds = kinds_of(args.dtype or (("float32",) if device.type == "cpu" else ("bfloat16",)))
    if args.out is not None:
        claim(args.out)
    with progress("random weights") as shown:
        result = measure_shape(
            shape, layers, kinds, cells, plan, device, shown.update, args.repeat, args.clock
        )
    result["threads"] = torch.get_num_threads()
    result["settings"] = {k: _plain(v) for k, v in vars(args).items() if v is not None}
    result["settings"] |= {"layers": layers}
    tables = tables_of(result, _title(args.shape, shape, layers, plan, device, args.clock))
    console = Console()
    for table in tables:
        console.print(table)
    if args.out is not None:
        write(args.out, ["softmask", *argv], result, tables)
    if args.json:
        print(json.dumps(result))
    return 0


def _plain(value: Any) -> Any:
    return value if isinstance(value, int | float | tuple) else str(value)


def _title(
    name: str, shape: Shape, layers: int, plan: Plan, device: torch.device, clock: str
) -> str:
    depth = f"{layers} layers, measured"
    if layers < shape.layers:
        depth = f"{shape.layers} layers, projected from 1 and {layers}"
    threads = count(torch.get_num_threads(), "thread")
    return (
        f"{name}, random weights: {depth}\n"
        f"{device.type}, {threads}, {clock} time; a block of {plan.block} "
        f"in a text,\n{plan.steps} steps: ms of its first step, and of each later one"
    )
