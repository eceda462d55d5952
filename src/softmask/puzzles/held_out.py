"""Puzzles that are in an evaluation file, and are kept out of training and of fresh puzzles."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from functools import lru_cache
from importlib import resources

from .puzzles import Puzzle, canonical


def held_out_digest(kind: str, text: str) -> str:
    """Eight hexadecimal digits that stand for an evaluation puzzle; see `held_out.txt`."""
    return hashlib.sha256(f"{kind}:{canonical(kind, text)}".encode()).hexdigest()[:8]


@lru_cache(maxsize=1)
def read_held_out() -> frozenset[str]:
    """Digests of every evaluation puzzle: training must not see them, in any order of numbers."""
    listed = resources.files(__package__) / "held_out.txt"
    lines = listed.read_text(encoding="ascii").splitlines()
    return frozenset(line for line in lines if not line.startswith("#"))


def unevaluated(puzzles: Iterable[Puzzle]) -> Iterator[Puzzle]:
    """Those that are in no evaluation file."""
    held_out = read_held_out()
    return (p for p in puzzles if held_out_digest(p.kind, p.input) not in held_out)
