"""What decoding costs at a published shape, beside the machine's limit in the same run.

A model of 7B has no room on most machines, and a layer costs what the next one does. So two depths
are timed in turns: their difference is the cost of a layer, and what is left is embedding, head,
statistics and bookkeeping. The cost of all layers is projected from these, and says so.
The limit of a step is the time of its products, at the best rate of a product of as many rows in
the same dtype, or of reading its weights at the rate of a copy. Packed weights are computed in
another dtype: theirs is that dtype's best rate, and their own bytes. `softmask bench --shape` runs
it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from rich.table import Table

from ..hub.load import choose_dtype
from ..models import DreamModel
from ..reporting.measure import is_emulated, summary, timed
from ..reporting.tables import light_table
from .cells import PIECES, Cell, Plan, Times, measure
from .roofline import WAYS, Work, machine, parts, probes, products_of
from .shapes import Shape, outline, random_model, refusal

Kind = tuple[str, torch.dtype | None, str | None]


# Calls of each probe in a round, where they take no longer than this together: a product of few
# rows takes a millisecond, and one call of it says little.
CALLS, CALLS_S = 5, 0.25


@dataclass
class Probed:
    """The machine's own rates: milliseconds of each probe, several times a round.

    A limit is what the machine reaches at its best, so the fastest call of all rounds counts.
    """

    calls: dict[str, Callable[[], object]]
    flop: dict[int, int]  # of the products, by their rows
    device: torch.device
    clock: str
    ms: dict[str, list[float]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        model: DreamModel,
        dtype: torch.dtype,
        clock: str,
        rows: Collection[int],
        *,
        by_rows: bool,
    ) -> Probed:
        """A large product and a copy; `by_rows`: and two products for each number of rows."""
        ids = torch.zeros(1, 1, dtype=torch.long, device=model.device)
        calls = {name: probes(model, ids, 1, 1)[name] for name in ("product", "copy")}
        flop = {}
        for count in sorted(rows) if by_rows else ():
            products, flop[count] = products_of(model, count, dtype)
            calls |= {f"rows {count} {way}": call for way, call in products.items()}
        for call in calls.values():
            call()
        return cls(calls, flop, model.device, clock)

    def __call__(self) -> None:
        for name, call in self.calls.items():
            took: list[float] = []
            while len(took) < CALLS and sum(took) < 1000 * CALLS_S:
                took.append(1000 * timed(call, self.device, self.clock))
            self.ms.setdefault(name, []).extend(took)

    def rates(self) -> dict[str, Any]:
        """Operations and bytes a second, and what they come from."""
        best = {name: min(values) for name, values in self.ms.items()}
        by_rows = {
            count: 1000 * flop / min(best[f"rows {count} {way}"] for way in WAYS)
            for count, flop in self.flop.items()
        }
        whole = machine(best["product"], best["copy"], self.device)
        raw = {name: summary(values) for name, values in self.ms.items()}
        return whole | {"flop_per_s_by_rows": by_rows, "probe_ms": raw}


def run(
    shape: Shape,
    layers: int,
    kinds: Sequence[Kind],
    cells: Sequence[Cell],
    plan: Plan,
    device: torch.device,
    tick: Callable[[str], None],
    repeat: int | None = None,
    clock: str = "wall",
) -> dict[str, Any]:
    """All cells in all dtypes: rows, what was skipped and why, and each dtype's rates.

    Args:
        layers: how many are made; the rest is projected from these and from one.
        tick: is told what begins.
        clock: as for `timed`.
    """
    result: dict[str, Any] = {"clock": clock, "rows": [], "skipped": [], "machine": {}}
    positions = max(cell.tokens for cell in cells)
    for name, given, quantize in kinds:
        chosen = given or choose_dtype(None, device)
        dtype = torch.float32 if isinstance(chosen, str) else chosen
        if is_emulated(dtype, device):
            why = f"this {device.type} has no units for {name} and emulates it"
            result["skipped"].append({"dtype": name, "reason": why})
            continue
        plain = outline(shape, layers, positions, dtype)
        fitting = []
        for cell in cells:
            why_not = refusal(plain, cell.tokens * cell.batch, plan.k, quantize, device)
            if why_not is None:
                fitting.append(cell)
            else:
                result["skipped"].append({"dtype": name, **asdict(cell), "reason": why_not})
        if not fitting:
            continue
        tick(f"{name}: random weights")
        model = random_model(shape, layers, positions, dtype, device, quantize)
        # Of packed weights no product of few rows: it would read more than they do.
        probe = partial(Probed.of, model, dtype, clock, by_rows=quantize is None)
        depths = (layers,) if layers == shape.layers else (1, layers)
        found, probed = measure(model, fitting, plan, depths, tick, repeat, probe, clock)
        assert probed is not None
        rates = result["machine"][name] = probed.rates()
        for cell in fitting:
            row = _row(model, shape, cell, plan, found[cell], rates)
            result["rows"].append({"dtype": name, **row})
        del model, probe, probed  # the next ones need their memory
    return result


def _row(
    model: DreamModel, shape: Shape, cell: Cell, plan: Plan, found: Times, rates: dict[str, Any]
) -> dict[str, Any]:
    """What a cell costs: measured at full depth, or projected from two."""
    depths, row = sorted(found.ms), asdict(cell)
    row["kind"] = "measured" if depths == [shape.layers] else "projected"
    costs = {}
    for piece in PIECES:
        ms = {depth: found.ms[depth][piece] for depth in depths}
        floor = _floor(model, shape, cell, plan, found.work[piece], rates)
        costs[piece] = _whole(ms, shape.layers) | {"limit_ms": floor} | asdict(found.work[piece])
        costs[piece]["share"] = round(floor / costs[piece]["ms"]["median"], 4)
        costs[piece]["raw_ms"] = ms
    block_ms = _of_block(plan, {piece: costs[piece]["ms"]["median"] for piece in PIECES})
    limit_ms = _of_block(plan, {piece: costs[piece]["limit_ms"] for piece in PIECES})
    tokens = plan.block * cell.batch
    return (
        row
        | costs
        | {
            "ms_per_token": round(block_ms / tokens, 4),
            "tokens_per_second": round(1000 * tokens / block_ms, 3),
            "share": round(limit_ms / block_ms, 4),
        }
    )


def _of_block(plan: Plan, ms: dict[str, float]) -> float:
    """A block's milliseconds, from those of its first step and of a later one."""
    return ms["first"] + (plan.steps - 1) * ms["later"]


def _whole(ms: dict[int, list[float]], layers: int) -> dict[str, Any]:
    """Milliseconds of a step with all layers; of two depths, round by round."""
    shallow, *deeper = sorted(ms)
    if not deeper:
        return {"ms": summary(ms[shallow])}
    (deep,) = deeper
    pairs = list(zip(ms[shallow], ms[deep], strict=True))
    each = [(b - a) / (deep - shallow) for a, b in pairs]
    rest = [a - shallow * layer for (a, _), layer in zip(pairs, each, strict=True)]
    whole = [b + (layers - deep) * layer for (_, b), layer in zip(pairs, each, strict=True)]
    return {"ms": summary(whole), "layer_ms": summary(each), "rest_ms": summary(rest)}


def _floor(
    model: DreamModel, shape: Shape, cell: Cell, plan: Plan, work: Work, rates: dict[str, Any]
) -> float:
    """The least milliseconds of a step with all layers, at the machine's rates."""
    made = model.config.num_hidden_layers
    seen = cell.tokens
    if cell.cache == "exact":  # a block sees what lies before it, and itself
        seen = (cell.tokens // 2 // plan.block + 2) * plan.block
    by_rows = rates["flop_per_s_by_rows"]
    counts = {"transformer": round(work.positions), "head": round(work.rows)}
    own = {name: by_rows[n] for name, n in counts.items() if n in by_rows}
    found = parts(model, work, seen, rates, own)
    every_layer_ms = found["transformer"].floor_ms * shape.layers / made
    return round(every_layer_ms + found["head"].floor_ms, 4)


def tables_of(result: dict[str, Any], title: str) -> list[Table]:
    """The rows, what was skipped, and the machine's rates."""
    table = light_table(title)
    left = ("dtype", "cache", "decoding")
    for column in ("dtype", "cache", "batch x size", "decoding", "first", "later"):
        table.add_column(column, justify="left" if column in left else "right")
    table.add_column("limit", justify="right")
    # Of one processor, where its time is what was taken.
    each = "tokens/s" if result["clock"] == "wall" else "tokens/CPU s"
    table.add_column(each, justify="right")
    for row in result["rows"]:
        table.add_row(
            row["dtype"],
            row["cache"],
            f"{row['batch']} x {row['tokens']}",
            row["mode"],
            *(f"{row[piece]['ms']['median']:.0f}" for piece in PIECES),
            f"{100 * row['share']:.0f} %",
            f"{row['tokens_per_second']:.2f}",
        )
    return [table, *_skipped(result["skipped"]), _rates(result["machine"])]


def _skipped(skipped: Sequence[dict[str, Any]]) -> list[Table]:
    """What was left out, if anything was, and why."""
    if not skipped:
        return []
    table = light_table("skipped")
    for column in ("dtype", "cell", "reason"):
        table.add_column(column)
    for row in skipped:
        cell = ""
        if "cache" in row:
            cell = Cell(row["cache"], row["tokens"], row["batch"], row["mode"]).name
        table.add_row(row["dtype"], cell, row["reason"])
    return [table]


def _rates(machines: dict[str, dict[str, Any]]) -> Table:
    """What the machine does, by dtype and rows of a product."""
    table = light_table("the machine, in the same rounds")
    for column in ("dtype", "product, GFLOP/s", "of rows", "copy, GB/s"):
        left = column in ("dtype", "of rows")
        table.add_column(column, justify="left" if left else "right")
    for name, rates in machines.items():
        copy = f"{rates['bytes_per_s'] / 1e9:.1f}"
        table.add_row(name, f"{rates['flop_per_s'] / 1e9:.0f}", "square", copy)
        for rows, rate in rates["flop_per_s_by_rows"].items():
            table.add_row(name, f"{rate / 1e9:.0f}", str(rows), "")
    return table
