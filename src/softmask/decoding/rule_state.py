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


class RuleState:
    """What rules keep of each position of a canvas: it comes and goes with the text there."""

    def __init__(self, positions: int, device: torch.device) -> None:
        self._positions, self._device = positions, device
        self._values: dict[tuple[str, str, str], tuple[Tensor, bool | int | float]] = {}

    def forget(self, own: slice) -> None:
        """As before the first look."""
        for value_P, start in self._values.values():
            value_P[own] = start

    def at(self, rule: Rule, rows_N: Tensor) -> dict[str, Any]:
        """What a rule keeps there, by name."""
        found = {}
        for name, start in rule.state.items():
            key = (rule.kind, rule.name, name)
            if key not in self._values:
                kind = {bool: torch.bool, int: torch.long}.get(type(start), torch.float32)
                value_P = torch.full((self._positions,), start, dtype=kind, device=self._device)
                self._values[key] = value_P, start
            found[name] = self._values[key][0][rows_N]
        return found

    def put(self, rule: Rule, rows_N: Tensor, state: dict[str, Any]) -> None:
        """Takes down what a rule wrote.

        Raises:
            ValueError: a name that the rule did not declare.
        """
        for name, value_N in state.items():
            if name not in rule.state:
                raise ValueError(f"the rule {rule.name} keeps no {name}: declare it in its state")
            value_P = self._values[rule.kind, rule.name, name][0]
            value_P[rows_N] = torch.as_tensor(value_N, device=self._device).to(value_P.dtype)

    def save(self) -> dict[tuple[str, str, str], Any]:
        """Everything it holds."""
        return {key: (value_P.clone(), start) for key, (value_P, start) in self._values.items()}

    def restore(self, saved: dict[tuple[str, str, str], Any]) -> None:
        """As it was when it was saved."""
        self._values = {key: (value_P.clone(), start) for key, (value_P, start) in saved.items()}


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
