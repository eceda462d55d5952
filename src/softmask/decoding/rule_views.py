"""What the rules of decoding are shown of a step, and what feedback and stopping rules make of it.

Shape suffixes: N masked positions that were read, M those of them that stay masked, R sequences,
L columns of one sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..logits import LogitStatistics
from ..rule_inputs import MaskedRows, TextSoFar
from ..settings import require, shown
from ..soft_mask import Feedback, Judged, SoftMask, feedback_of
from .predictions import LogitReader, Predictions, Rows
from .rule_state import RuleState, ask
from .sequence import SequenceState
from .soft_state import SoftState
from .unmask import Choice, choose_likeliest

EVERY = slice(None)


def commit_rows(
    predictions: Predictions, open_N: Tensor | None, soft: SoftState, positions: int
) -> MaskedRows:
    """What commit rules see of the rows that a step read, on a canvas of so many positions."""
    choice = predictions.choice or choose_likeliest(predictions.seen)
    every_N = predictions.rows_N
    # Before any rule asks: one that reads them of some texts alone would else advance the
    # generators of all, and what a text draws next would depend on its neighbours.
    drawn_N = predictions.uniform(positions) if predictions.settings.config.rules_draw else None

    def uniform_N() -> Tensor:
        # Of rules that draw nothing no generator is at hand, and seeds would count for nothing.
        if drawn_N is None:
            raise ValueError(
                "a rule cannot read uniform_N here (a commit rule that draws says so: draws=True)"
            )
        return drawn_N

    return MaskedRows(
        {
            **statistics_of(choice),
            "uniform_N": uniform_N,
            "open_N": lambda: every_N >= 0 if open_N is None else open_N,
            **_facts(predictions, soft, EVERY),
        }
    )


def statistics_of(choice: Choice) -> dict[str, Callable[[], Any]]:
    """What the model says of the rows of a commit rule."""
    return {
        "tokens_N": lambda: choice.tokens_N,
        "probability_N": lambda: choice.chance_N,
        "entropy_N": lambda: choice.entropy_N,
        "margin_N": lambda: choice.chances_NK[:, 0] - choice.chances_NK[:, 1],
        "top_ids_NK": lambda: choice.ids_NK,
        "top_probability_NK": lambda: choice.chances_NK,
    }


def _facts(rows: Rows, soft: SoftState, stays_M: slice | Tensor) -> dict[str, Callable[[], Any]]:
    """What is known of rows, or some of them, beside what the model says there."""
    rows_M, ragged = rows.rows_N[stays_M], rows.ragged
    schedules = [sequence.schedule for sequence in rows.sequences]

    def spread(values_R: Any, dtype: torch.dtype | None = torch.float32) -> Tensor:
        values = torch.tensor(values_R, dtype=dtype, device=rows_M.device)
        return values[ragged.sequence_N[stays_M]]

    def starts() -> list[int]:
        pairs = zip(schedules, rows.scheduled_R, strict=True)
        return [schedule.bounds(scheduled.block)[0] for schedule, scheduled in pairs]

    return {
        "position_N": lambda: ragged.column_N[stays_M],
        "block_position_N": lambda: ragged.column_N[stays_M] - spread(starts(), None),
        "step_N": lambda: spread([sequence.step for sequence in rows.sequences], None),
        "left_N": lambda: spread([one.total_left / max(one.masks, 1) for one in schedules]),
        "lambda_N": lambda: soft.lambda_P[rows_M],
        "commits_N": lambda: spread([one.commits for one in rows.scheduled_R], None),
        "share_N": lambda: spread([one.share for one in rows.scheduled_R]),
        "left_R": lambda: [one.total_left for one in schedules],
        "masks_R": lambda: [one.masks for one in schedules],
        "spread": lambda: spread,
        "table": lambda: ragged.table,
        "flat": lambda: ragged.flat,
    }


def texts_of(sequence_N: Tensor, texts: int, wanted_N: Tensor | None = None) -> list[Tensor]:
    """Of each of so many texts the indices of its rows; `wanted_N` (bool): of those alone."""
    own = [sequence_N == index for index in range(texts)]
    return [(one_N if wanted_N is None else one_N & wanted_N).nonzero().squeeze(1) for one_N in own]


def feedback_at(
    mixer: SoftMask, predictions: Predictions, stays_M: Tensor, reader: LogitReader
) -> Feedback:
    """What was read at the rows that stay masked, as far as the feedback rule needs it."""
    rows_M, rule = predictions.rows_N[stays_M], mixer.rule.rule
    if rule.reads_logits:
        assert predictions.logits_NV is not None
        return Feedback(rows_M, logits_NV=predictions.logits_NV[stays_M])
    kept = LogitStatistics(*(values[stays_M] for values in predictions.seen))
    seen = feedback_of(kept, rows_M, mixer.reads)
    if not rule.streamed:
        return seen
    return seen._replace(blend=lambda index: reader.blended(predictions, stays_M[index]))


def judge_feedback(
    mixer: SoftMask,
    seen: Feedback,
    predictions: Predictions,
    stays_M: Tensor,
    memory: RuleState,
    soft: SoftState,
) -> Judged:
    """What the feedback rule says of the rows that stay masked.

    Raises:
        ValueError: it returns something else than such rules do.
    """
    chosen = mixer.rule
    rows = mixer.view(seen, _facts(predictions, soft, stays_M))
    texts: list[Tensor] = []
    if not chosen.rule.batched:
        texts = texts_of(predictions.ragged.sequence_N[stays_M], len(predictions.sequences))
    found = ask(chosen, rows, seen.rows_N, texts, memory)
    parts = [(index, mixer.checked(result, seen.at(index))) for index, result in found]
    if len(parts) == 1 and isinstance(parts[0][0], slice):
        return parts[0][1]
    confidence_M = torch.zeros(len(seen.rows_N), dtype=torch.float32, device=seen.rows_N.device)
    for index, part in parts:
        confidence_M[index] = part.confidence_N
    if all(part.shares is None for _, part in parts):
        return Judged(confidence_M)
    # A rule may say shares of some texts, and of several tokens more of one than of another.
    said = [
        (index, mixer.leading_shares(seen.at(index)) if part.shares is None else part.shares)
        for index, part in parts
    ]
    shares_MK = confidence_M.new_zeros(len(confidence_M), max(own.shape[1] for _, own in said))
    for index, own in said:
        shares_MK[index, : own.shape[1]] = own
    return Judged(confidence_M, shares_MK)


def text_so_far(
    sequence: SequenceState, ids_L: np.ndarray, groups: Sequence[Predictions]
) -> TextSoFar:
    """What the stopping rule sees of a text after a step's commits."""

    def read(name: str) -> np.ndarray:
        values_L = np.full(sequence.length, np.nan, dtype=np.float32)
        for group in groups:
            if sequence in group.sequences:
                own_N = group.ragged.sequence_N == group.sequences.index(sequence)
                choice = choose_likeliest(group.seen)
                column = group.ragged.column_N[own_N].cpu().numpy()
                values_L[column] = getattr(choice, name)[own_N].float().cpu().numpy()
        return values_L

    masked_L, generated_L, schedule = sequence.masked_L, sequence.generated_L, sequence.schedule
    sources: dict[str, Callable[[], Any]] = {
        "ids_L": lambda: ids_L,
        "masked_L": lambda: masked_L,
        "generated_L": lambda: generated_L,
        "ends_L": lambda: generated_L & np.isin(ids_L, sequence.rules.end_ids),
        "entropy_L": lambda: read("entropy_N"),
        "probability_L": lambda: read("chance_N"),
        "step": lambda: sequence.step + 1,
        "left": lambda: int(masked_L.sum()),
        "masks": lambda: schedule.masks,
    }
    return TextSoFar(sources, sequence.stop_state)


def given_up(
    sequence: SequenceState, ids_L: np.ndarray, groups: Sequence[Predictions]
) -> np.ndarray | None:
    """(L,) bool: the masks that a stopping rule gives up; None: the text goes on.

    Raises:
        ValueError: the rule returns something else than a column behind the prompt or None.
    """
    if not sequence.may_stop or not sequence.masked_L.any():
        return None
    chosen = sequence.config.stopping
    column = chosen.run(text_so_far(sequence, ids_L, groups))
    if column is None:
        return None
    first = int(sequence.generated_L.argmax())
    is_column = isinstance(column, int | np.integer) and not isinstance(column, bool)
    require(
        is_column and first <= column <= sequence.length,
        f"{chosen.rule} must return None or an int, a column of the text from {first} (behind the "
        f"prompt) to {sequence.length} (its end), not {shown(column)}",
    )
    given_up_L = sequence.masked_L.copy()
    given_up_L[: int(column)] = False
    return given_up_L
