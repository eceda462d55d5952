"""Commits and feedback of texts that keep to a form.

Of the tokens that a step commits together each is looked at again with those before it, the surest
first: one that has become impossible waits for the next step or, in the last one, gives way to the
likeliest that is possible. Feedback at the rows that stay must not point at what these commits have
made impossible.
Shape suffixes: N masked positions that were read, M some of them, V vocabulary, K leading tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from ..logits import LogitStatistics
from .canvas_constraint import BROKEN, Pair
from .logprobs import FORBIDDEN
from .predictions import LogitReader, Predictions
from .sequence import SequenceState
from .unmask import tempered_and_filtered


def renew(sequences: Sequence[SequenceState], ids: Callable[[SequenceState], np.ndarray]) -> None:
    """Before a step: sets of states that an automaton has forgotten are read off the canvas."""
    constrained = [(one, one.constraint) for one in sequences if one.constraint is not None]
    for _, constraint in constrained:
        constraint.automaton.trim()
    for sequence, constraint in constrained:
        if constraint.is_void:
            constraint.renew(ids(sequence))


def write_fixed(sequence: SequenceState, ids_L: np.ndarray) -> list[tuple[int, int]]:
    """The columns and tokens about which what was committed leaves no choice.

    A sequence that a rule has ended before its text had the form fails.
    """
    assert sequence.constraint is not None
    if not sequence.constraint.follow(ids_L):
        sequence.failure = BROKEN
        return []
    written = sequence.constraint.write_fixed()
    columns = [column for column, _ in written]
    sequence.masked_L = sequence.constraint.masked(ids_L)
    sequence.masked_L[columns] = False
    return written


def settle(
    predictions: Predictions, chosen_N: Tensor, tokens_N: Tensor, reader: LogitReader
) -> tuple[Tensor, Tensor, Tensor]:
    """(N,) bool, the commits of a step that are possible together; (N,) and (N,) tokens and their
    logits, of those too that have taken the place of others."""
    logits_N = predictions.logits_of(tokens_N).float()
    sure = (logits_N - predictions.seen.total_N).cpu().numpy()
    logits = logits_N.cpu().numpy().copy()
    chosen, tokens = chosen_N.cpu().numpy().copy(), tokens_N.cpu().numpy().copy()
    column_N, begin = predictions.ragged.column_N.cpu().numpy(), 0
    for sequence, scheduled, count in zip(
        predictions.sequences, predictions.scheduled_R, predictions.counts_R, strict=True
    ):
        rows, begin = np.arange(begin, begin + count), begin + count
        constraint = sequence.constraint
        assert constraint is not None
        rows = rows[chosen[rows]]
        is_last = sequence.schedule.is_last(scheduled)
        is_last |= sequence.config.by_chance and scheduled.share >= 1
        must_before = sequence.counted(scheduled)[1] if is_last else 0
        for row in rows[np.argsort(-sure[rows], kind="stable")].tolist():
            column = int(column_N[row])
            if constraint.commit(column, int(tokens[row])):
                continue
            chosen[row] = column < must_before
            if chosen[row]:
                tokens[row], logits[row] = _instead(predictions, row, reader, sequence.generator)
                done = constraint.commit(column, int(tokens[row]))
                assert done, "a token that is allowed can be committed"
    device, settled = chosen_N.device, (chosen, tokens, logits)
    chosen_N, tokens_N, logits_N = (torch.from_numpy(values).to(device) for values in settled)
    return chosen_N, tokens_N, logits_N


def _instead(
    predictions: Predictions, row: int, reader: LogitReader, generator: torch.Generator | None
) -> tuple[int, float]:
    """Another token for a row, of those that have stayed possible, and its logit."""
    index_1 = torch.tensor([row], device=predictions.rows_N.device)
    seen = reader.read_again(predictions, index_1)
    config = predictions.settings.config
    if config.temperature > 0 and predictions.logits_NV is not None:
        logits_1V = predictions.logits_NV[index_1].float()
        likely_1V = tempered_and_filtered(logits_1V, config)
        token = int(torch.multinomial(likely_1V.softmax(-1), 1, generator=generator))
        return token, float(logits_1V[0, token])
    return int(seen.ids_NK[0, 0]), float(seen.logits_NK[0, 0])


def look_again(predictions: Predictions, pairs: list[Pair], reader: LogitReader) -> Predictions:
    """The predictions of rows whose sets a step's commits have changed, with what is allowed now.

    Args:
        pairs: the sets of each row when it was read.
    """
    changed = {
        row: new
        for row, (old, new) in enumerate(zip(pairs, predictions.pairs(), strict=True))
        if old != new
    }
    soft_mask = predictions.settings.soft_mask
    if soft_mask is not None and not soft_mask.feedback.rule.dense:
        changed = _misled(predictions, changed)
    if not changed:
        return predictions
    index_M = torch.tensor(list(changed), device=predictions.rows_N.device)
    renewed = reader.read_again(predictions, index_M)
    seen = LogitStatistics(*(values.clone() for values in predictions.seen))
    for values, new_values in zip(seen, renewed, strict=True):
        values[index_M] = new_values
    return dataclasses.replace(predictions, seen=seen)


def _misled(predictions: Predictions, pairs: dict[int, Pair]) -> dict[int, Pair]:
    """Those of some rows whose leading tokens are no longer all possible."""
    automaton = predictions.settings.automaton
    assert automaton is not None
    if not pairs:
        return {}
    seen = LogitStatistics(*(values[list(pairs)] for values in predictions.seen))
    class_MK = automaton.classes_of(seen.ids_NK.cpu().numpy())
    floored_MK = (seen.logits_NK - seen.total_N[:, None] < FORBIDDEN).cpu().numpy()
    return {
        row: pair
        for (row, pair), class_K, floored_K in zip(pairs.items(), class_MK, floored_MK, strict=True)
        if not (automaton.allowed(*pair)[class_K] | floored_K).all()
    }
