"""What one forward says of sequences of like settings, read off the head at their masked rows.

Shape suffixes: N masked positions that are read, R sequences, V vocabulary, D width.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..logits import LogitStatistics, floor_of, statistics, tempered
from ..mixtures import READ_NORMS
from ..models import DreamModel
from ..models.lm_head import Blend, Forbid, chunked_logits, read_head
from .canvas_constraint import Pair, forbidden
from .schedule import ScheduledStep
from .sequence import Rules, SequenceState, Settings
from .unmask import Choice, Ragged, RowNoise, choose_likeliest, choose_tokens, is_greedy, leading


@dataclass(frozen=True)
class Rows:
    """The masked rows that a step reads, of sequences of like settings."""

    sequences: Sequence[SequenceState]
    scheduled_R: Sequence[ScheduledStep]
    counts_R: list[int]  # how many rows of each are read
    rows_N: Tensor  # flat positions
    ragged: Ragged

    @property
    def settings(self) -> Settings:
        """What the sequences share."""
        return self.sequences[0].settings

    def pairs(self) -> list[Pair]:
        """Of rows of constrained texts: the sets between which each lies."""
        columns = iter(self.ragged.column_N.tolist())
        pairs: list[Pair] = []
        for sequence, count in zip(self.sequences, self.counts_R, strict=True):
            assert sequence.constraint is not None
            own = itertools.islice(columns, count)
            pairs += [sequence.constraint.pair(column) for column in own]
        return pairs

    def noise(self, device: torch.device) -> RowNoise:
        """Where random choices are drawn from."""
        generators = [s.generator for s in self.sequences if s.generator is not None]
        return RowNoise(generators if self.settings.seeded else None, device)

    def uniform(self, positions: int) -> Tensor:
        """(N,) a random number in [0, 1) for each of these rows of a canvas of `positions`."""
        noise = self.noise(self.rows_N.device)
        return noise.uniform_at(positions, self.rows_N, self.counts_R)

    def token_noise(self, positions: int) -> Callable[[int], Tensor]:
        """What tokens of these rows are drawn by: (N, width) numbers of a canvas of `positions`."""
        noise = self.noise(self.rows_N.device)
        if self.settings.config.noise == "float64":
            return lambda width: noise.exponential64_at(
                positions, self.rows_N, self.counts_R, width
            )
        return lambda width: noise.exponential(self.counts_R, width)


@dataclass(frozen=True)
class Predictions(Rows):
    """What was read at these rows; `logits_NV` where statistics alone do not do, `hidden_ND` where
    rows may be read again: of a constraint, or of feedback that mixes in all tokens."""

    seen: LogitStatistics
    logits_NV: Tensor | None
    choice: Choice | None
    hidden_ND: Tensor | None = None

    def logits_of(self, tokens_N: Tensor) -> Tensor:
        """(N,) the logit of a token in each row. Without all logits it must be the likeliest."""
        if self.logits_NV is None:
            return self.seen.logits_NK[:, 0]
        return self.logits_NV.gather(1, tokens_N[:, None]).squeeze(1)


# Settings of the end tokens that a batch keeps rows of the vocabulary for.
BIASES = 64


class LogitReader:
    """Reads a model's head at chosen rows, as the settings of their sequences need it."""

    def __init__(self, model: DreamModel, positions: int) -> None:
        self._model, self._vocabulary = model, model.config.vocab_size
        self._positions = positions
        # A server's batch lives long, and each is a row of the vocabulary.
        self._bias_of = functools.lru_cache(BIASES)(partial(_bias, model.dtype, self._vocabulary))

    def read(
        self,
        rows: Rows,
        hidden_ND: Tensor,
        scores: Choice | None = None,
        *,
        blends: bool = False,
    ) -> Predictions:
        """The predictions of rows from their hidden states; logits are kept where needed alone.

        Args:
            scores: what confidence is to be, if it is not read off these.
            blends: what feedback mixes in of all tokens is computed with the statistics, as most
                rows will need it; else `blended` reads rows again.
        """
        settings = rows.settings
        bias_V, k = self._bias(settings, hidden_ND.device), self._leading(rows)
        rule = None if settings.soft_mask is None else settings.soft_mask.feedback.rule
        forbid = self._forbid(rows)
        if is_greedy(settings.config) and (rule is None or not rule.reads_logits):
            with self._blend(settings) if blends else nullcontext() as blend:
                seen = self._seen(settings, hidden_ND, k, bias_V, forbid, blend)
            again = forbid is not None or (rule is not None and rule.streamed)
            found = self._choose(rows, seen, None, hidden_ND if again else None)
        else:
            logits_NV = self._logits(hidden_ND, bias_V, forbid)
            seen = _statistics(settings, logits_NV, k)
            found = self._choose(rows, seen, logits_NV)
        if scores is None or found.choice is None:
            return found
        choice = scores._replace(tokens_N=found.choice.tokens_N)
        return dataclasses.replace(found, choice=choice)

    def scores(self, rows: Rows, hidden_ND: Tensor) -> Choice:
        """How sure rows are of the likeliest tokens of these hidden states."""
        settings = rows.settings
        config, temperatures = settings.config, settings.temperatures
        bias_V, forbid = self._bias(settings, hidden_ND.device), self._forbid(rows)
        if is_greedy(config):
            seen = self._seen(settings, hidden_ND, self._leading(rows), bias_V, forbid)
            return choose_likeliest(seen, config.score_temperature, temperatures)
        return choose_tokens(
            self._logits(hidden_ND, bias_V, forbid), config, None, settings.late_ids
        )

    def _forbid(self, rows: Rows) -> Forbid | None:
        """What the forms of constrained texts leave out at their rows."""
        automaton = rows.settings.automaton
        return None if automaton is None else forbidden(automaton, rows.pairs(), rows.rows_N.device)

    def _seen(
        self,
        settings: Settings,
        hidden_ND: Tensor,
        k: int,
        bias_V: Tensor | None,
        forbid: Forbid | None,
        blend: Blend | None = None,
    ) -> LogitStatistics:
        """The statistics of logits that are not kept."""
        head, size = self._model.lm_head, self._vocabulary
        temperatures = _temperature(settings), settings.temperatures
        return read_head(head, hidden_ND, size, k, bias_V, forbid, *temperatures, blend)

    @contextmanager
    def _blend(self, settings: Settings) -> Iterator[Blend]:
        """What feedback makes of logits that mixes in all tokens."""
        soft_mask = settings.soft_mask
        assert soft_mask is not None
        temperature = soft_mask.temperature * soft_mask.token_temperature
        with self._model.input_table() as table_VD:
            yield Blend(table_VD, temperature, norms=soft_mask.mixture in READ_NORMS)

    def blended(self, predictions: Predictions, index_M: Tensor) -> Tensor:
        """(M, X) what feedback mixes in of all tokens at some rows, as they may be now."""
        found_NX = predictions.seen.blended_NX
        if found_NX.shape[1]:
            return found_NX[index_M]
        with self._blend(predictions.settings) as blend:
            if predictions.logits_NV is not None:
                return blend.of_logits(predictions.logits_NV[index_M])
            return self._further(predictions, index_M, blend=blend).blended_NX

    def shares(self, predictions: Predictions, index_M: Tensor) -> tuple[Tensor, Tensor]:
        """(M, K) the leading tokens of some rows, as they may be now, and (M, K) fp32 their shares
        where feedback mixes in all tokens: of the softmax at its temperature."""
        soft_mask, seen = predictions.settings.soft_mask, predictions.seen
        assert soft_mask is not None
        temperature, total_M = soft_mask.temperature * soft_mask.token_temperature, None
        if temperature == 1:
            total_M = seen.total_N[index_M]
        elif predictions.logits_NV is not None:
            logits_MV = predictions.logits_NV[index_M]
            total_M = statistics(logits_MV, 1, temperatures=[temperature]).totals_NT[:, 0]
        else:
            found = self._further(predictions, index_M, temperatures=[temperature])
            total_M = found.totals_NT[:, 0]
        logits_MK = tempered(seen.logits_NK[index_M], temperature)
        return seen.ids_NK[index_M], (logits_MK - total_M[:, None]).exp()

    def _further(self, predictions: Predictions, index_M: Tensor, **wanted: Any) -> LogitStatistics:
        """What `read_head` says more of some rows whose logits were not kept."""
        assert predictions.hidden_ND is not None
        hidden_MD = predictions.hidden_ND[index_M]
        bias_V = self._bias(predictions.settings, hidden_MD.device)
        forbid = self._forbid_now(predictions, index_M)
        head, size = self._model.lm_head, self._vocabulary
        return read_head(head, hidden_MD, size, 1, bias_V, forbid, **wanted)

    def _logits(
        self, hidden_ND: Tensor, bias_V: Tensor | None = None, forbid: Forbid | None = None
    ) -> Tensor:
        """(N, V) all logits."""
        parts = chunked_logits(self._model.lm_head, hidden_ND, self._vocabulary, bias_V, forbid)
        return torch.cat(list(parts))

    def _forbid_now(self, predictions: Predictions, index_M: Tensor) -> Forbid | None:
        """What the forms of constrained texts leave out at some rows, after a step's commits."""
        automaton = predictions.settings.automaton
        if automaton is None:
            return None
        pairs = predictions.pairs()
        return forbidden(automaton, [pairs[row] for row in index_M.tolist()], index_M.device)

    def read_again(self, predictions: Predictions, index_M: Tensor) -> LogitStatistics:
        """What some rows of constrained texts say now, after commits that bind them."""
        forbid = self._forbid_now(predictions, index_M)
        assert forbid is not None
        k = predictions.seen.ids_NK.shape[1]
        if predictions.logits_NV is not None:
            logits_MV = predictions.logits_NV[index_M]
            forbid(logits_MV, 0, 0)
            predictions.logits_NV[index_M] = logits_MV
            return _statistics(predictions.settings, logits_MV, k)
        assert predictions.hidden_ND is not None
        hidden_MD = predictions.hidden_ND[index_M]
        bias_V = self._bias(predictions.settings, hidden_MD.device)
        return self._seen(predictions.settings, hidden_MD, k, bias_V, forbid)

    def logits(self, hidden_TD: Tensor) -> Tensor:
        """(T, V) all logits, for hooks."""
        return self._logits(hidden_TD)

    def read_logits(self, rows: Rows, logits_NV: Tensor) -> Predictions:
        """The predictions of rows whose logits exist already."""
        bias_V = self._bias(rows.settings, logits_NV.device)
        if bias_V is not None:
            logits_NV = logits_NV + bias_V.to(logits_NV.dtype)
        forbid = self._forbid(rows)
        if forbid is not None:
            forbid(logits_NV, 0, 0)
        seen = _statistics(rows.settings, logits_NV, self._leading(rows))
        return self._choose(rows, seen, logits_NV)

    def _leading(self, rows: Rows) -> int:
        """How many leading tokens are to be read."""
        settings = rows.settings
        soft_mask, mixed = settings.soft_mask, 1
        if soft_mask is not None:
            mixed = max(soft_mask.k, soft_mask.feedback.rule.top)
        wanted = max(leading(settings.config), mixed, *(s.top_logprobs for s in rows.sequences))
        return min(wanted, self._vocabulary)

    def _choose(
        self,
        rows: Rows,
        seen: LogitStatistics,
        logits_NV: Tensor | None,
        hidden_ND: Tensor | None = None,
    ) -> Predictions:
        config, choice = rows.settings.config, None
        if is_greedy(config):
            temperatures = rows.settings.temperatures
            choice = choose_likeliest(seen, config.score_temperature, temperatures)
        elif not config.by_chance:  # which draws for the chosen positions alone
            assert logits_NV is not None
            noise = rows.token_noise(self._positions)
            choice = choose_tokens(logits_NV, config, noise, rows.settings.late_ids)
        return Predictions(
            **vars(rows), seen=seen, logits_NV=logits_NV, choice=choice, hidden_ND=hidden_ND
        )

    def _bias(self, settings: Settings, device: torch.device) -> Tensor | None:
        """(V,) what the rules add to the logits."""
        # An automaton leaves out what is suppressed.
        rules = settings.rules
        if settings.automaton is not None:
            rules = dataclasses.replace(rules, suppressed=())
        config = settings.config
        return self._bias_of(rules, config.end_penalty, config.suppress_eos, device)


def _bias(
    dtype: torch.dtype,
    size: int,
    rules: Rules,
    penalty: float,
    no_eos: bool,
    device: torch.device,
) -> Tensor | None:
    """(V,) what these rules add to logits of a dtype; None: nothing."""
    unwanted = [rules.eos_id] if no_eos and rules.eos_id is not None else []
    if not (rules.suppressed or unwanted or (rules.end_ids and penalty)):
        return None
    floor = floor_of(dtype)
    bias_V = torch.zeros(size, dtype=torch.float32, device=device)
    # Above what a form forbids, which may leave nothing but an end.
    bias_V[list(rules.end_ids)] = min(max(-penalty, floor / 2), -floor / 2)
    bias_V[unwanted] = floor / 2
    bias_V[list(rules.suppressed)] = floor
    return bias_V


def _temperature(settings: Settings) -> float:
    """Of the entropy that the feedback is weighed by."""
    soft_mask = settings.soft_mask
    if soft_mask is None:
        return 1.0
    own = soft_mask.temperature if soft_mask.feedback.rule.streamed else 1.0
    return own * soft_mask.entropy_temperature


def _statistics(settings: Settings, logits_NV: Tensor, k: int) -> LogitStatistics:
    """Those of logits that are there, at all temperatures that the settings ask for."""
    return statistics(logits_NV, k, _temperature(settings), settings.temperatures)


def fail_where_nan(predictions: Predictions) -> None:
    """Sequences with a NaN among their logits fail; the sum of exponentials shows any."""
    bad_N = torch.isnan(predictions.seen.total_N)
    if bool(bad_N.any()):
        for index in predictions.ragged.sequence_N[bad_N].unique().tolist():
            sequence = predictions.sequences[index]
            sequence.failure = (
                f"the model's logits are NaN at step {sequence.step}: its weights are damaged, or "
                "its dtype overflows (try --dtype float32 or bfloat16)"
            )
