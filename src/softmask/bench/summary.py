"""What `softmask bench` found, for scripts (a mapping) and for people (tables)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.table import Table

from ..models import DreamModel
from ..reporting.measure import pair_ratios, summary
from ..reporting.tables import light_table
from ..sampling import CACHES
from .roofline import Work, machine, parts

PUBLISHED = "published_"
MIXTURE = "soft_mixture_"
NETWORK = "family_"
MODES = ("plain", "soft")


@dataclass
class Measured:
    """Raw numbers, by decoding; `ms` of a step, and of a call for the probes."""

    ms: dict[str, list[float]]
    work: dict[str, Work]
    forwards: dict[str, int] = field(default_factory=dict)
    peaks: dict[str, float] = field(default_factory=dict)


def label(name: str) -> str:
    """As a row of a table names a decoding."""
    return name.replace("_", ", ")


def block_wise(names: Iterable[str], mode: str) -> list[str]:
    """The block-wise decodings of a mode: without cache first."""
    return [f"{mode}_{kind}" for kind in ("blocks", *CACHES) if f"{mode}_{kind}" in names]


def summarise(model: DreamModel, rows: int, tokens: int, found: Measured) -> dict[str, Any]:
    """A decoding each, the ratios, and the machine.

    Args:
        rows, tokens: of the batch; masks in each row.
    """
    medians = {name: summary(values)["median"] for name, values in found.ms.items()}
    rates = machine(medians["product"], medians["copy"], model.device)
    length = round(found.work["plain"].positions / rows)
    result: dict[str, Any] = {}
    for name, forwards in found.forwards.items():
        result[name] = {
            "ms_per_step": summary(found.ms[name]),
            "tokens_per_second": round(rows * tokens / medians[name] / forwards * 1000, 2),
            "forwards": forwards,
            "peak_mb": found.peaks[name],
        }
        if not name.startswith((PUBLISHED, NETWORK)):
            work = found.work[name]
            pieces = parts(model, work, length, rates)
            floor_ms = sum(part.floor_ms for part in pieces.values())
            result[name]["floor"] = {
                "ms": round(floor_ms, 4),
                "share": round(floor_ms / medians[name], 4),
                **asdict(work),
                **{part: asdict(value) for part, value in pieces.items()},
            }
    result["ratios"] = _ratios(found)
    result["soft_over_plain"] = result["ratios"]["soft_over_plain"]
    alone = {part: summary(found.ms[part]) for part in ("transformer", "head")}
    return result | {"machine": {**rates, "alone_ms": alone}}


def _ratios(found: Measured) -> dict[str, Any]:
    """Time against time of the same round, and memory against memory."""
    names, pairs = found.forwards, [("soft", "plain")]
    pairs += [(name, "plain") for name in names if name.startswith((MIXTURE, NETWORK))]
    pairs += [(PUBLISHED + mode, mode) for mode in MODES if PUBLISHED + mode in names]
    for mode in MODES:
        uncached = block_wise(names, mode)[:1]
        pairs += [(first, name) for first in uncached for name in block_wise(names, mode)[1:]]
    ratios: dict[str, Any] = {
        f"{a}_over_{b}": pair_ratios(found.ms[a], found.ms[b]) for a, b in pairs
    }
    for mode in MODES:
        if PUBLISHED + mode in names:
            share = found.peaks[mode] / found.peaks[PUBLISHED + mode]
            ratios[f"{mode}_over_{PUBLISHED}{mode}_peak"] = round(share, 4)
    return ratios


def tables_of(result: dict[str, Any], title: str) -> list[Table]:
    """The result of `summarise`: decodings, ratios, and what a step without blocks consists of."""
    return [_decodings(result, title), _ratio_table(result["ratios"]), _floor(result)]


def _decodings(result: dict[str, Any], title: str) -> Table:
    table = light_table(title)
    for column in ("decoding", "ms per step", "min..max", "floor", "tokens/s", "forwards", "MB"):
        table.add_column(column, justify="left" if column == "decoding" else "right")
    for name, row in result.items():
        if not isinstance(row, dict) or "ms_per_step" not in row:
            continue
        ms, floor = row["ms_per_step"], row.get("floor")
        table.add_row(
            label(name),
            f"{ms['median']:.1f}",
            f"{ms['min']:.1f}..{ms['max']:.1f}",
            f"{100 * floor['share']:.0f} %" if floor else "",
            f"{row['tokens_per_second']:.1f}",
            str(row["forwards"]),
            f"{row['peak_mb']:.0f}",
        )
    return table


def _ratio_table(ratios: dict[str, Any]) -> Table:
    table = light_table()
    for column in ("ratio (time: median of pairs)", "", "min..max"):
        table.add_column(column, justify="left" if column.startswith("ratio") else "right")
    for name, value in ratios.items():
        above, below = name.removesuffix("_peak").split("_over_")
        pair = f"{label(above)} / {label(below)}"
        if isinstance(value, dict):
            spread = f"{value['min']:.3f}..{value['max']:.3f}"
            table.add_row(pair, f"{value['median']:.3f}", spread)
        else:
            table.add_row(f"{pair}, peak memory", f"{value:.3f}", "")
    return table


def _floor(result: dict[str, Any]) -> Table:
    """The soft step without blocks: what it computes, and at what pace."""
    rates, floor = result["machine"], result["soft"]["floor"]
    table = light_table(
        f"a product runs at {rates['flop_per_s'] / 1e9:.0f} GFLOP/s, "
        f"a copy at {rates['bytes_per_s'] / 1e9:.1f} GB/s"
    )
    for column in ("in a soft step", "GFLOP", "MB read", "floor ms", "alone ms", "floor"):
        table.add_column(column, justify="left" if column == "in a soft step" else "right")
    what = {
        "transformer": f"transformer, {floor['positions']:.0f} positions",
        "head": f"head, {floor['rows']:.0f} rows",
    }
    for part, name in what.items():
        flop, size = f"{floor[part]['flop'] / 1e9:.2f}", f"{floor[part]['bytes'] / 1e6:.0f}"
        alone = rates["alone_ms"][part]["median"]
        table.add_row(name, flop, size, *_share(floor[part]["floor_ms"], alone))
    alone = sum(rates["alone_ms"][part]["median"] for part in what)
    table.add_row("both", "", "", *_share(floor["ms"], alone))
    step = result["soft"]["ms_per_step"]["median"]
    table.add_row("the step", "", "", *_share(floor["ms"], step))
    return table


def _share(floor_ms: float, ms: float) -> tuple[str, str, str]:
    return f"{floor_ms:.1f}", f"{ms:.1f}", f"{100 * floor_ms / ms:.0f} %"
