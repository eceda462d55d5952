"""Where feedback helps on text: nats by the share of masks, soft-masked minus plain training.

    python benchmarks/evidence/text.py OUT --code CODE --scorer SCORER --arms plain,wide --work WORK
    python benchmarks/evidence/by_time.py OUT2 --work WORK --text CODE/held_out.txt CODE/train.txt

The same windows and masks for both models of a seed, fresh feedback. OUT2 gets result.json and
table.txt.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from common import PLAIN, chosen_arms
from rich.table import Table
from score_text import LENGTH, MASKS
from text import number, over_seeds

from softmask.held_out import Slice, held_out, windows
from softmask.hub import load
from softmask.result_folder import claim, write
from softmask.stories import split_stories
from softmask.sweep import parse_seeds
from softmask.tables import light_table

DOCUMENTS = 100  # of a text, evenly from all of it: enough for its windows


def slices(model: Path, text: Path, count: int, device: str) -> list[Slice]:
    """The ten slices of time, and behind them the whole, over `count` windows of a text."""
    checkpoint = load(model, device=device, dtype="float32")
    texts = split_stories(text.read_text(encoding="utf-8"))
    texts = texts[:: max(1, len(texts) // DOCUMENTS)]
    every = windows(checkpoint.tokenizer, texts, LENGTH)
    every = [window for window in every if len(window) == LENGTH]
    chosen = every[:: max(1, len(every) // count)][:count]
    found = held_out(checkpoint.model, chosen, MASKS, checkpoint.soft_mask)
    return [*found.by_time, found.whole]


def table_of(rows: list[dict], texts: list[Path], arms: list[str]) -> Table:
    """Mean over the seeds, and the error of that mean."""
    table = light_table(
        "nats, fresh feedback minus the plain arm (s.e. over seeds), by masked share"
    )
    table.add_column("masked")
    for text in texts:
        for arm in arms:
            table.add_column(f"{text.name}: {arm}", justify="right")
    shares = list(dict.fromkeys((row["low"], row["high"]) for row in rows))
    for share in shares:
        cells = []
        for text in texts:
            for arm in arms:
                key = (text.name, arm, *share)
                names = ("text", "arm", "low", "high")
                gaps = [r["minus_plain"] for r in rows if tuple(r[n] for n in names) == key]
                cells.append(number(over_seeds(gaps), "+"))
        low, high = share
        table.add_row("all" if share == (0.0, 1.0) else f"{low:.1f} to {high:.1f}", *cells)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="of text.py: its models")
    parser.add_argument("--text", type=Path, nargs="+", required=True)
    parser.add_argument("--arms", type=chosen_arms, default=chosen_arms("plain,wide"))
    parser.add_argument("--seeds", default="1-3")
    parser.add_argument("--windows", type=int, default=48)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    claim(args.out)
    torch.set_num_threads(1)
    soft, rows = [arm.name for arm in args.arms if arm.name != PLAIN], []
    for text in args.text:
        for seed in parse_seeds(args.seeds):

            def read(arm: str, text: Path = text, seed: int = seed) -> list[Slice]:
                model = args.work / f"{arm}-seed{seed}" / "model"
                return slices(model, text, args.windows, args.device)

            plain = read(PLAIN)
            for arm in soft:
                for own, other in zip(read(arm), plain, strict=True):
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
