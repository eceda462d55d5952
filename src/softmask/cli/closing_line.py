"""The lines under a text: what it cost, and how to have it again.

They go to standard error, and only where that is a terminal: a script reads `--json` instead.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.text import Text

from ..config import SamplingConfig
from ..reporting.words import count


@dataclass(frozen=True)
class Cost:
    """What texts took together; `mean_lambda` is None where nothing was fed back."""

    tokens: int
    forwards: int
    seconds: float
    mean_lambda: float | None

    @classmethod
    def of(cls, run: Any) -> Cost:
        """Of a finished `Generation`."""
        rows = run.completions()
        fed = [row.mean_lambda for row in rows if row.mean_lambda is not None]
        tokens = [len(row.token_ids) for row in rows]
        if run.infill:  # their texts are whole: what was given is no work
            tokens = [sum(run.generated(run.last, row)) for row in range(len(rows))]
        return cls(
            tokens=sum(tokens),
            forwards=run.last.forwards,
            seconds=run.seconds,
            mean_lambda=sum(fed) / len(fed) if fed else None,
        )

    @classmethod
    def of_recorded(cls, run: Mapping[str, Any]) -> Cost:
        """Of a recorded run."""
        fed = [step["lambda"] for step in run["steps"] if step["lambda"] is not None]
        end = run["end"]
        mean = sum(fed) / len(fed) if fed else None
        given = sum(not token["masked"] for token in run["start"]["tokens"])
        # Of an infilling `tokens` counts the whole text.
        tokens = min(end["tokens"], len(end["pieces"]) - given)
        return cls(tokens, end["forwards"], end["seconds"], mean)

    def __str__(self) -> str:
        rate = f" ({self.tokens / self.seconds:.0f} tokens/s)" if self.seconds else ""
        parts = [
            count(self.tokens, "token"),
            count(self.forwards, "forward"),
            f"{self.seconds:.1f} s{rate}",
        ]
        if self.mean_lambda is not None:
            parts.append(f"mean lambda {self.mean_lambda:.2f}")
        return ", ".join(parts)


def seed_line(run: Any, *, drawn: bool) -> str | None:
    """Which seed a `Generation` drew from; None where nothing was drawn."""
    if not run.sampling.is_random:
        return None
    first, last = run.seeds[0], run.seeds[-1]
    several = first != last
    said = f"seeds {first} to {last}" if several else f"seed {first}"
    again = f"; --seed {first} writes {'these' if several else 'this'} again"
    return f"{said}, drawn at random{again}" if drawn else said


def settings_line(
    sampling: SamplingConfig, sources: Iterable[tuple[str, Mapping[str, Any]]]
) -> str | None:
    """The settings that are not the defaults, by who set them; None: all are.

    Args:
        sources: who, and the settings by name; a later one wins over those before it.
    """
    default, by_whom = SamplingConfig(), {}
    for whom, names in sources:
        by_whom.update({name: (whom, value) for name, value in names.items()})
    told: dict[str, list[str]] = {}
    for name, (whom, value) in by_whom.items():
        value = getattr(sampling, name, value)
        if value != getattr(default, name, None):
            told.setdefault(whom, []).append(f"{name} {value}")
    return "; ".join(f"{whom}: {', '.join(names)}" for whom, names in told.items()) or None


def soft_mask_given(values: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of SoftMaskConfig under the names of their options."""
    return {f"soft_mask_{name}": value for name, value in values.items()}


def say(lines: Iterable[str | None], args: argparse.Namespace) -> None:
    """Prints lines on standard error, if that is a terminal and nobody asked for quiet."""
    if args.quiet or not sys.stderr.isatty():
        return
    console = Console(stderr=True)
    for line in lines:
        if line is not None:
            console.print(Text(line, style="dim"))


def print_text(text: str, before: str = "") -> None:
    """Prints a finished text: wrapped at words in a terminal, as it is in a pipe.

    Args:
        before: what the text goes on from, which a terminal shows in front of it.
    """
    if sys.stdout.isatty():
        Console().print(Text.assemble((before, "dim"), text))
    else:
        print(text, flush=True)
