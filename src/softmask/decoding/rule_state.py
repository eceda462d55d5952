"""Rules of decoding at work: each text's rows put to them, and what they keep between two steps.

A rule that is not batched is called for each text alone, so that whatever it sorts, counts or
averages, a text's result depends on no neighbour.
Shape suffixes: P positions, N masked positions, M some of them, R texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..rule_inputs import MaskedRows
from ..rules import Chosen, Rule
from ..settings import require, shown

# What a state begins with that is to keep such values.
_WIDER = {"floats": "0.0", "ints": "0"}


class RuleState:
    """What rules keep of each position of a canvas: it comes and goes with the text there."""

    def __init__(self, positions: int, device: torch.device) -> None:
        self._positions, self._device = positions, device
        self._values: dict[tuple[str, str, str], tuple[Tensor, bool | int | float]] = {}

    def forget(self, own: slice) -> None:
        """As before the first look."""
        for value_P, start in self._values.values():
            value_P[own] = start

    def move(self, to_N: Tensor, from_N: Tensor, room: slice) -> None:
        """Takes positions of a room along to others of it; the rest of it is as before."""
        for value_P, start in self._values.values():
            moved = value_P[from_N]
            value_P[room] = start
            value_P[to_N] = moved

    def at(self, rule: Rule, rows_N: Tensor) -> dict[str, Any]:
        """What a rule keeps there, by name."""
        found = {}
        for name, start in rule.state.items():
            key = (rule.kind, rule.name, name)
            if key not in self._values:
                value_P = torch.full(
                    (self._positions,), start, dtype=_dtype(start), device=self._device
                )
                self._values[key] = value_P, start
            found[name] = self._values[key][0][rows_N]
        return found

    def put(self, rule: Rule, rows_N: Tensor, state: dict[str, Any]) -> None:
        """Takes down what a rule wrote.

        Raises:
            ValueError: a name that the rule did not declare, or values that do not suit it.
        """
        require(isinstance(state, dict), f"{rule} must write into its state, not replace it")
        for name, value_N in state.items():
            require(name in rule.state, f"{rule} keeps no {name}: declare it in its state")
            value_P, start = self._values[rule.kind, rule.name, name]
            value_P[rows_N] = self._fitting(f"{rule}: state {name}", value_N, start, len(rows_N))

    def _fitting(self, what: str, value: Any, start: bool | int | float, count: int) -> Tensor:
        """What a rule wrote, of the type that it declared."""
        try:
            value_N = _as_tensor(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"{what} must be numbers, one for each row, not {shown(value)}"
            ) from error
        require(
            value_N.shape in ((), (count,)),
            f"{what} must be {count} numbers here, one for each row, and not of the shape "
            f"{tuple(value_N.shape)}",
        )
        dtype = _dtype(start)
        # As torch does in place: a wider kind of number would lose what it says.
        require(
            torch.can_cast(value_N.dtype, dtype),
            f"{what} begins with {start!r}, so it cannot keep {_kind(value_N.dtype)}: declare "
            f"{_WIDER.get(_kind(value_N.dtype), 'another value')}",
        )
        return _as_tensor(value, dtype).to(self._device)

    def save(self) -> dict[tuple[str, str, str], Any]:
        """Everything it holds."""
        return {key: (value_P.clone(), start) for key, (value_P, start) in self._values.items()}

    def restore(self, saved: dict[tuple[str, str, str], Any]) -> None:
        """As it was when it was saved."""
        self._values = {key: (value_P.clone(), start) for key, (value_P, start) in saved.items()}


def _as_tensor(value: Any, dtype: torch.dtype | None = None) -> Tensor:
    """A rule's numbers. What is no tensor yet stays on the host: mps has no float64, which NumPy's
    floats are."""
    if isinstance(value, Tensor):
        return value if dtype is None else value.to(dtype)
    return torch.as_tensor(value, dtype=dtype, device="cpu")


def _dtype(start: bool | int | float) -> torch.dtype:
    return {bool: torch.bool, int: torch.long}.get(type(start), torch.float32)


def _kind(dtype: torch.dtype) -> str:
    if dtype.is_complex:
        return "complex numbers"
    return "floats" if dtype.is_floating_point else "bools" if dtype == torch.bool else "ints"


def ask(
    chosen: Chosen,
    rows: MaskedRows,
    rows_N: Tensor,
    texts: Sequence[Tensor],
    memory: RuleState,
) -> list[tuple[slice | Tensor, Any]]:
    """What a rule says: pairs of indices into the rows, and its result for those.

    Args:
        rows_N: flat positions.
        texts: of each text, the indices of its rows that the rule is asked about.
    """
    rule = chosen.rule
    if rule.batched and not rule.state:
        return [(slice(None), chosen.run(rows))]
    found: list[tuple[slice | Tensor, Any]] = []
    for index in [slice(None)] if rule.batched else texts:
        own_M = rows_N[index]
        if not len(own_M):
            continue
        part = rows.at(index, memory.at(rule, own_M))
        found.append((index, chosen.run(part)))
        memory.put(rule, own_M, part.state)
    return found
