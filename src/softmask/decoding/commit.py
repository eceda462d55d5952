"""Which of the rows that were read a step commits, and to which tokens.

Shape suffixes: N masked positions that were read, R sequences.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .predictions import Predictions, Rows
from .unmask import choose_by_rule, choose_positions, choose_tokens


def choose_commits(predictions: Predictions, positions: int, mask_id: int) -> tuple[Tensor, Tensor]:
    """(N,) bool, the rows that are committed, and (N,) each row's token.

    Args:
        positions: of the whole canvas, for which the published code draws its noise.
    """
    if predictions.settings.config.alg == "origin":
        return _by_coin(predictions, mask_id)
    return _by_confidence(predictions, positions)


def _committable(rows: Rows) -> Tensor | None:
    """(N,) bool: rows in their sequence's current block; None where there are no blocks."""
    if all(sequence.config.block_length is None for sequence in rows.sequences):
        return None
    bounds = []
    for sequence, scheduled in zip(rows.sequences, rows.scheduled_R, strict=True):
        first, stop = sequence.committable(scheduled)
        bounds.append((sequence.start + first, sequence.start + stop))
    bounds_R2 = torch.tensor(bounds, device=rows.rows_N.device)
    low_N, high_N = bounds_R2[rows.ragged.sequence_N].unbind(1)
    return (rows.rows_N >= low_N) & (rows.rows_N < high_N)


def _by_confidence(predictions: Predictions, positions: int) -> tuple[Tensor, Tensor]:
    """As many as the schedule says, the surest first; and what a rule of confidence adds."""
    config, choice, noise_N = predictions.settings.config, predictions.choice, None
    assert choice is not None
    open_N, confidence_N = _committable(predictions), choice.confidence_N
    if open_N is not None:
        confidence_N = confidence_N.masked_fill(~open_N, -torch.inf)
    counts_R = [scheduled.commits for scheduled in predictions.scheduled_R]
    rows_N, ragged = predictions.rows_N, predictions.ragged
    if config.alg_temp and any(counts_R):
        noise = predictions.noise(rows_N.device)
        wanted_R = [count > 0 for count in counts_R]
        noise_N = noise.exponential_at(positions, rows_N, predictions.counts_R, wanted_R)
    chosen_N = choose_positions(confidence_N, counts_R, ragged, config.alg_temp, noise_N)
    if config.adaptive:
        if open_N is None:
            open_N = torch.ones_like(chosen_N)
        thresholds = [sequence.schedule.threshold for sequence in predictions.sequences]
        chosen_N |= choose_by_rule(choice, open_N, config, thresholds, ragged)
    return chosen_N, choice.tokens_N


def _by_coin(predictions: Predictions, mask_id: int) -> tuple[Tensor, Tensor]:
    """Each mask commits by a coin of its own, 1 - s / t; tokens are drawn for those alone."""
    rows_N, sequence_N = predictions.rows_N, predictions.ragged.sequence_N
    noise, open_N = predictions.noise(rows_N.device), _committable(predictions)
    shares = [scheduled.share for scheduled in predictions.scheduled_R]
    share_R = torch.tensor(shares, device=rows_N.device)
    chosen_N = noise.uniform(predictions.counts_R) < share_R[sequence_N]
    if open_N is not None:
        chosen_N &= open_N
    tokens_N = torch.full_like(rows_N, mask_id)
    if predictions.choice is not None:
        return chosen_N, torch.where(chosen_N, predictions.choice.tokens_N, tokens_N)
    assert predictions.logits_NV is not None
    counts_R = sequence_N[chosen_N].bincount(minlength=len(predictions.sequences)).tolist()
    config = predictions.settings.config
    drawn = choose_tokens(predictions.logits_NV[chosen_N], config, noise, counts_R)
    tokens_N[chosen_N] = drawn.tokens_N
    return chosen_N, tokens_N
