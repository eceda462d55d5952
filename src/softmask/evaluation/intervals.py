"""Bounds on the mean of paired differences that hold for few samples too."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np

RESAMPLES = 10_000
CONFIDENCE = 0.95
# Student's t at a tail of 2.5 %, from 1 to 10 degrees of freedom; beyond, a series is as good.
_STUDENT = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)


def interval(differences: np.ndarray, seed: int = 0) -> tuple[float, float] | None:
    """Where the mean of (N,) paired differences lies, with 95 % confidence; None: of one sample.

    The bootstrap's percentiles alone are too narrow for few samples: resamples of one or of equal
    ones do not differ. So they are widened to Student's interval; of differences that are all as
    large (pass or fail) to the exact one of a sign test, which leaves out zero where McNemar's
    exact test does.
    """
    count = len(differences)
    if count < 2:
        return None
    low, high = _bootstrap(differences, seed)
    sizes = np.unique(np.abs(differences[differences != 0]).round(9))
    mean = float(differences.mean())
    if len(sizes) == 1:
        apart, more = int((differences != 0).sum()), int((differences > 0).sum())
        whole = float(sizes[0]) * apart / count
        own = [whole * (2 * share - 1) for share in _share(more, apart)]
    else:
        half = _student(count - 1) * float(differences.std(ddof=1)) / math.sqrt(count)
        own = [mean - half, mean + half]
    return min(low, own[0]), max(high, own[1])


def _bootstrap(differences: np.ndarray, seed: int) -> tuple[float, float]:
    generator = np.random.default_rng(seed)
    means = []
    for _ in range(RESAMPLES // 100):  # a hundred at once bounds the memory
        drawn = generator.integers(0, len(differences), size=(100, len(differences)))
        means.append(differences[drawn].mean(axis=1))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return float(low), float(high)


def _student(freedom: int) -> float:
    """How many standard errors of a mean are 95 %, at so many degrees of freedom."""
    if freedom <= len(_STUDENT):
        return _STUDENT[freedom - 1]
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    return (
        z
        + (z**3 + z) / (4 * freedom)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    )


def _share(of_them: int, count: int) -> tuple[float, float]:
    """Clopper and Pearson's exact bounds on a share."""
    return 1 - _most(count - of_them, count), _most(of_them, count)


def _most(of_them: int, count: int) -> float:
    """The largest share at which so few are no less likely than a tail."""
    if of_them == count:
        return 1.0
    drawn = np.arange(of_them + 1)
    logs = np.concatenate([[0.0], np.log(np.arange(1, count + 1)).cumsum()])
    ways = logs[count] - logs[drawn] - logs[count - drawn]
    low, high = 0.0, 1.0
    for _ in range(50):
        share = (low + high) / 2
        terms = ways + drawn * math.log(share) + (count - drawn) * math.log1p(-share)
        if np.exp(terms).sum() > (1 - CONFIDENCE) / 2:
            low = share
        else:
            high = share
    return high
