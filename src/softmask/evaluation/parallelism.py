"""Score against tokens per forward: what a way of decoding in parallel reaches, and its area.

Tokens per forward (TPF) depend on no machine. The area is AUP, accuracy under parallelism, as the
evaluation of d3LLM computes it (`AUP_leaderboard/aup_utils.py` of hao-ai-lab/d3LLM).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from ..files import read_json_lines
from .record import is_measured

# The published constants: how fast a lower score loses weight, and by how much (of 1) a point may
# lie below the curve's first one.
ALPHA, DROP = 3.0, 0.05
RESAMPLES = 1_000


@dataclass(frozen=True)
class Samples:
    """One metric of one run, a value a document, in the order of the documents' names."""

    document_N: np.ndarray
    score_N: np.ndarray
    tokens_N: np.ndarray
    forwards_N: np.ndarray

    def drawn(self, documents_N: np.ndarray) -> Samples:
        """Some of the documents, once or more often."""
        arrays = (self.document_N, self.score_N, self.tokens_N, self.forwards_N)
        return Samples(*(values_N[documents_N] for values_N in arrays))

    @property
    def score(self) -> float:
        return float(self.score_N.mean())

    @property
    def error(self) -> float | None:
        """The standard error of the score; None: there is one sample."""
        count = len(self.score_N)
        return float(self.score_N.std(ddof=1) / math.sqrt(count)) if count > 1 else None

    @property
    def tokens_per_forward(self) -> float:
        """Tokens of all answers through the forwards that all took."""
        return float(self.tokens_N.sum() / self.forwards_N.sum())


def read_samples(folder: Path, task: str, metric: str, filter_name: str) -> Samples:
    """The samples of one task of a finished evaluation.

    Raises:
        ValueError: the task's samples are missing or damaged, or say nothing of that metric, or of
            tokens and forwards.
    """
    path = folder / f"samples_{task}.jsonl"
    rows = {}
    try:
        for sample in read_json_lines(path):
            has = sample["filter"] == filter_name and metric in sample["metrics"]
            if has and is_measured(metric, sample[metric]):
                spent = [sum(sample[name]) for name in ("tokens", "forwards")]
                rows[f"{sample['doc_hash']}/{sample['doc_id']}"] = [sample[metric], *spent]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} holds no samples with their tokens and forwards: repeat the evaluation with "
            "--overwrite"
        ) from error
    if not all(isinstance(row[0], int | float) for row in rows.values()):
        raise ValueError(f"{metric} is no number of a single document: choose another by --metric")
    if not rows or not all(row[2] for row in rows.values()):
        raise ValueError(f"{path} has no answers with a {metric} ({filter_name})")
    names = sorted(rows)
    columns = np.array([rows[name] for name in names], dtype=float).T
    return Samples(np.array(names, dtype=object), *columns)


def accuracy_under_parallelism(points: Sequence[tuple[float, float]], best: float) -> float:
    """AUP of one curve, in points of a hundred times a token per forward.

    The first point counts with the rectangle left of it, the others with trapezoids, their scores
    weighted by min(exp(-3 (1 - score / best)), 1). Points more than 0.05 below the first one, which
    is that of the fewest tokens per forward, do not count.

    Args:
        points: (tokens per forward, score in [0, 1]).
        best: the best score of all curves that are compared.
    """
    curve = sorted(points)
    curve = [point for point in curve if point[1] >= curve[0][1] - DROP]
    weighted = [
        (x, y * math.exp(min(-ALPHA * (1 - y / best), 0.0)) if best else 0.0) for x, y in curve
    ]
    area = curve[0][0] * curve[0][1]
    for (x, y), (right, above) in pairwise(weighted):
        area += (right - x) * (y + above) / 2
    return 100 * area


def area_of(
    curve: Sequence[Samples], runs: Sequence[Samples], seed: int = 0
) -> tuple[float, float | None, float | None]:
    """AUP of a curve, and the bounds of 95 % confidence (bootstrap over documents; None of one).

    Args:
        curve: the runs along it.
        runs: all runs that it is compared with, itself among them; they give the best score.
    """

    def area(documents_N: np.ndarray) -> float:
        best = max(float(run.score_N[documents_N].mean()) for run in runs)
        drawn = [run.drawn(documents_N) for run in curve]
        return accuracy_under_parallelism([(s.tokens_per_forward, s.score) for s in drawn], best)

    count = len(curve[0].score_N)
    if count < 2:
        return area(np.arange(count)), None, None
    generator = np.random.default_rng(seed)
    areas = [area(generator.integers(0, count, count)) for _ in range(RESAMPLES)]
    low, high = np.quantile(areas, [0.025, 0.975])
    return area(np.arange(count)), float(low), float(high)
