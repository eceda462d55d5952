"""Where feedback helps on text: nats by the share of masks, soft-masked minus plain training.

    python benchmarks/evidence/text.py OUT --code CODE --scorer SCORER --arms plain,wide --work WORK
    python benchmarks/evidence/by_time.py OUT2 --work WORK --text CODE/held_out.txt CODE/train.txt

The same windows and masks for both models of a seed, fresh feedback. OUT2 gets result.json and
table.txt.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch
from common import PLAIN, add_arm_options, chosen_arms, evenly, folder_of
from rich.table import Table
from score_text import MASKS, whole_windows
from text import number, over_seeds

from softmask.evaluation.held_out import Slice, held_out
from softmask.hub.load import load
from softmask.puzzles.stories import split_stories
from softmask.reporting.result_folder import claim, write
from softmask.reporting.tables import light_table
from softmask.training.sweep import parse_seeds

DOCUMENTS = 100  # of a text, evenly from all of it: enough for its windows


def slices(model: Path, texts: Sequence[str], count: int, device: str) -> list[Slice]:
    """The ten slices of time, and behind them the whole, over `count` windows."""
    checkpoint = load(model, device=device, dtype="float32")
    chosen = evenly(whole_windows(checkpoint, texts), count)
    found = held_out(checkpoint.model, chosen, MASKS, checkpoint.soft_mask)
    return [*found.by_time, found.whole]


def table_of(rows: list[dict], texts: list[Path], arms: list[str]) -> Table:
    """Mean over the seeds, and the error of that mean."""
    table = light_table(
        "nats, fresh feedback minus the plain arm (s.e. over seeds), by masked share"
    )
    table.add_column("masked")
    columns = [(text.name, arm) for text in texts for arm in arms]
    for text, arm in columns:
        table.add_column(f"{text}: {arm}", justify="right")
    gaps: dict[tuple, dict[tuple, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        gaps[row["low"], row["high"]][row["text"], row["arm"]].append(row["minus_plain"])
    for (low, high), found in gaps.items():
        share = "all" if (low, high) == (0.0, 1.0) else f"{low:.1f} to {high:.1f}"
        table.add_row(share, *(number(over_seeds(found[column]), "+") for column in columns))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="of text.py: its models")
    parser.add_argument("--text", type=Path, nargs="+", required=True)
    add_arm_options(parser, chosen_arms("plain,wide"))
    parser.add_argument("--windows", type=int, default=48)
    args = parser.parse_args()
    claim(args.out)
    torch.set_num_threads(1)
    soft, rows = [arm.name for arm in args.arms if arm.name != PLAIN], []
    for text in args.text:
        texts = split_stories(text.read_text(encoding="utf-8"))
        texts = texts[:: max(1, len(texts) // DOCUMENTS)]
        for seed in parse_seeds(args.seeds):
            models = {a.name: folder_of(args.work, a.name, seed) / "model" for a in args.arms}
            of = {a: slices(m, texts, args.windows, args.device) for a, m in models.items()}
            for arm in soft:
                for own, other in zip(of[arm], of[PLAIN], strict=True):
                    known = own.plain if own.fresh is None else own.fresh
                    rows.append(
                        {
                            "text": text.name,
                            "arm": arm,
                            "seed": seed,
                            "low": own.low,
                            "high": own.high,
                            "plain": other.plain.nats,
                            "minus_plain": known.nats - other.plain.nats,
                        }
                    )
            print(f"done: {text.name}, seed {seed}", flush=True)
    write(args.out, ["python", *sys.argv], {"rows": rows}, [table_of(rows, args.text, soft)])


if __name__ == "__main__":
    main()
