"""Arguments of calls in Python, which no command line or schema has looked at: counts and seeds."""

from __future__ import annotations

import dataclasses
import inspect
import numbers
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ..config import SamplingConfig
from ..settings import plain, require, shown, unknown_setting


def is_whole_number(value: Any) -> bool:
    """Whether it counts, which True does not."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def as_count(name: str, value: Any, least: int = 1) -> int:
    """A number of things, at least one, or `least`.

    Raises:
        ValueError: it is something else.
    """
    require(is_whole_number(value), f"{name} must be a whole number, not {shown(value)}")
    require(value >= least, f"{name} must be at least {least}, not {value}")
    return int(value)


def check_keywords(function: Callable[..., Any], given: Mapping[str, Any]) -> None:
    """Raises ValueError for a keyword that is no setting; names the nearest that a function takes.

    Args:
        given: what came in as its `**sampling`.
    """
    fields = [field.name for field in dataclasses.fields(SamplingConfig)]
    own = inspect.signature(function).parameters.values()
    known = [*fields, *(one.name for one in own if one.kind is one.KEYWORD_ONLY)]
    require(
        "max_length" not in given,
        f"{function.__name__} takes no max_length, which would count the prompt: give "
        "max_new_tokens",
    )
    for name in given:
        if name not in fields:
            raise unknown_setting(function.__name__, name, known)


def row_seeds(seed: int | Sequence[int] | None, rows: int) -> list[int]:
    """The seed of each row: from this one on, or these.

    Raises:
        ValueError: one is no whole number or out of range, or there are not as many as rows.
    """
    seed = secrets.randbelow(2**31) if seed is None else plain(seed)
    given: list[Any] = list(seed) if isinstance(seed, Iterable) else [seed]
    for value in given:
        require(is_whole_number(value), f"a seed must be a whole number, not {shown(value)}")
    seeds = [int(value) for value in given]
    if not isinstance(seed, Iterable):
        seeds = [seeds[0] + row for row in range(rows)]
    require(len(seeds) == rows, f"{rows} rows need as many seeds, not {len(seeds)}")
    for value in seeds:
        require(0 <= value < 2**63, f"a seed must lie between 0 and 2**63, not {value}")
    return seeds
