"""Which of the rows that were read a step commits, and to which tokens.

Shape suffixes: N masked positions that were read, R sequences.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..logits import FLOOR
from ..rule_inputs import MaskedRows, are_shares
from ..rules import Chosen, find
from ..sampling import COLDEST
from .predictions import Predictions, Rows
from .rule_state import RuleState, ask
from .rule_views import commit_rows, texts_of
from .schedule import ScheduledStep
from .sequence import SequenceState
from .soft_state import SoftState
from .unmask import choose_positions, choose_tokens

# The least score of a rule; over the lowest `alg_temp` it is finite too.
LAST = FLOOR / 2 * COLDEST


def choose_commits(
    predictions: Predictions, positions: int, mask_id: int, memory: RuleState, soft: SoftState
) -> tuple[Tensor, Tensor]:
    """(N,) bool, the rows that are committed, and (N,) each row's token.

    Args:
        positions: of the whole canvas, for which the published code draws its noise.
    """
    open_N = _committable(predictions)
    rows = commit_rows(predictions, open_N, soft, positions)
    if predictions.settings.config.by_chance:
        return _by_coin(predictions, mask_id, rows, open_N, memory)
    return _by_confidence(predictions, positions, rows, open_N, memory)


def _results(
    chosen: Chosen,
    predictions: Predictions,
    rows: MaskedRows,
    open_N: Tensor | None,
    memory: RuleState,
) -> Tensor:
    """(N,) what a commit rule returns; its least where it was not asked.

    Raises:
        ValueError: it returns something else than it declares.
    """
    rule, rows_N = chosen.rule, predictions.rows_N
    texts = []
    if not rule.batched:
        texts = texts_of(predictions.ragged.sequence_N, len(predictions.sequences), open_N)
    found = ask(chosen, rows, rows_N, texts, memory)
    if rule.is_shipped and found:
        return found[0][1]
    if rule.returns == "rows":
        result_N = torch.zeros_like(rows_N, dtype=torch.bool)
    else:
        result_N = torch.zeros(len(rows_N), dtype=torch.float32, device=rows_N.device)
    for index, part in found:
        count = len(rows_N[index])
        good = isinstance(part, Tensor) and part.shape == (count,)
        good = good and (part.dtype == torch.bool) == (rule.returns == "rows")
        if rule.returns == "chances":
            good = good and are_shares(part)
        if not good or bool(part.isnan().any()):
            kinds = {"rows": "bools", "scores": "numbers", "chances": "numbers in [0, 1]"}
            raise ValueError(
                f"{rule} must return a tensor of {count} {kinds[rule.returns]} here, one "
                f"for each row, and no NaN"
            )
        result_N[index] = part.to(result_N)
    if rule.returns == "scores":
        # Minus infinity is for rows that must not be committed: a rule may only put them last.
        return result_N.clamp_min(LAST)
    return result_N


def _committable(rows: Rows) -> Tensor | None:
    """(N,) bool: rows in their sequence's open blocks; None where there are no blocks."""
    if all(sequence.schedule.is_whole for sequence in rows.sequences):
        return None
    return _within(rows, SequenceState.committable)


def _counted(rows: Rows, open_N: Tensor | None) -> Tensor | None:
    """(N,) bool: those of them among which a step commits as many as are scheduled."""
    if not any(sequence.config.opens_early for sequence in rows.sequences):
        return open_N
    return _within(rows, SequenceState.counted)


def _within(
    rows: Rows, columns: Callable[[SequenceState, ScheduledStep], tuple[int, int]]
) -> Tensor:
    """(N,) bool: rows that lie between these columns [first, stop) of their sequences."""
    bounds = []
    for sequence, scheduled in zip(rows.sequences, rows.scheduled_R, strict=True):
        first, stop = columns(sequence, scheduled)
        bounds.append((sequence.start + first, sequence.start + stop))
    bounds_R2 = torch.tensor(bounds, device=rows.rows_N.device)
    low_N, high_N = bounds_R2[rows.ragged.sequence_N].unbind(1)
    return (rows.rows_N >= low_N) & (rows.rows_N < high_N)


def _by_confidence(
    predictions: Predictions,
    positions: int,
    rows: MaskedRows,
    open_N: Tensor | None,
    memory: RuleState,
) -> tuple[Tensor, Tensor]:
    """As many as the schedule says, in a rule's order; and what a rule adds that decides itself."""
    config, choice, noise_N = predictions.settings.config, predictions.choice, None
    assert choice is not None
    scores_N = _results(config.ordering, predictions, rows, open_N, memory)
    counts_R = [scheduled.commits for scheduled in predictions.scheduled_R]
    counted_N, may_add_N = _counted(predictions, open_N), open_N
    if config.needs_agreement:
        agreement = Chosen(find("commit", "agreement"), {"agreement": config.agreement})
        agrees_N = _results(agreement, predictions, rows, open_N, memory)
        counted_N, counts_R = _agreed(predictions, agrees_N, counted_N, counts_R)
        may_add_N = agrees_N if open_N is None else agrees_N & open_N
    if counted_N is not None:
        scores_N = scores_N.masked_fill(~counted_N, -torch.inf)
    rows_N, ragged = predictions.rows_N, predictions.ragged
    if config.alg_temp and any(counts_R):
        noise = predictions.noise(rows_N.device)
        wanted_R = [count > 0 for count in counts_R]
        noise_N = noise.exponential_at(positions, rows_N, predictions.counts_R, wanted_R)
    chosen_N = choose_positions(scores_N, counts_R, ragged, config.alg_temp, noise_N)
    if config.deciding is not None:
        added_N = _results(config.deciding, predictions, rows, open_N, memory)
        chosen_N |= added_N if may_add_N is None else added_N & may_add_N
    return chosen_N, choice.tokens_N


def _agreed(
    rows: Rows, agrees_N: Tensor, counted_N: Tensor | None, counts_R: list[int]
) -> tuple[Tensor, list[int]]:
    """Among which rows a step commits, and how many, where tokens have to agree with earlier ones.

    Of the scheduled ones those that do, at least one; and in the last step all that are left.
    """
    if counted_N is None:
        counted_N = torch.ones_like(agrees_N)
    agreed_N, sequence_N = agrees_N & counted_N, rows.ragged.sequence_N
    agreed_R = sequence_N[agreed_N].bincount(minlength=len(counts_R)).tolist()
    pairs = zip(rows.sequences, rows.scheduled_R, strict=True)
    is_last_R = [sequence.schedule.is_last(scheduled) for sequence, scheduled in pairs]
    cases = list(zip(counts_R, agreed_R, is_last_R, strict=True))
    free_R = [is_last or not agreed for _, agreed, is_last in cases]
    counts_R = [
        count if is_last else min(count, max(agreed, 1)) for count, agreed, is_last in cases
    ]
    free_N = torch.tensor(free_R, device=agrees_N.device)[sequence_N]
    return counted_N & (agrees_N | free_N), counts_R


def _by_coin(
    predictions: Predictions,
    mask_id: int,
    rows: MaskedRows,
    open_N: Tensor | None,
    memory: RuleState,
) -> tuple[Tensor, Tensor]:
    """Each mask commits by a coin of its own; tokens are drawn for those alone."""
    rows_N, sequence_N = predictions.rows_N, predictions.ragged.sequence_N
    noise, config = predictions.noise(rows_N.device), predictions.settings.config
    chance_N = _results(config.ordering, predictions, rows, open_N, memory)
    # All that is left in a block's last step, whatever the rule says.
    chance_N = torch.maximum(chance_N, rows.share_N.floor())
    chosen_N = noise.uniform(predictions.counts_R) < chance_N
    if open_N is not None:
        chosen_N &= open_N
    tokens_N = torch.full_like(rows_N, mask_id)
    if predictions.choice is not None:
        return chosen_N, torch.where(chosen_N, predictions.choice.tokens_N, tokens_N)
    assert predictions.logits_NV is not None
    counts_R = sequence_N[chosen_N].bincount(minlength=len(predictions.sequences)).tolist()
    drawn = choose_tokens(
        predictions.logits_NV[chosen_N],
        config,
        lambda width: noise.exponential(counts_R, width),
        predictions.settings.late_ids,
    )
    tokens_N[chosen_N] = drawn.tokens_N
    return chosen_N, tokens_N
