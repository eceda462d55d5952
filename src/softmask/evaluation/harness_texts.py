"""Given texts, scored for the harness: the half of its model class that writes nothing."""

from __future__ import annotations

import dataclasses
import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import lm_eval.models  # noqa: F401, or the harness would know no model beside this one
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM

from ..config import SoftMaskConfig
from ..decoding.halves import AsMemoryAllows
from ..decoding.likelihood import Estimate, LikelihoodConfig, Request
from ..decoding.prompts import encode
from ..models.checkpoint import Checkpoint
from .auto_batch import AutoBatch
from .config import AUTO, ModelArgs
from .likelihood import estimates_and_matches, rolling
from .ranks import Ranks
from .responses import Responses, document_key, request_key
from .shared_responses import SharedResponses

logger = logging.getLogger(__name__)

# Documents of likelihood tasks that are scored, and then saved, together.
QUESTIONS_AT_ONCE = 8
# Rows of a forward over given texts where nothing is said.
MC_BATCH_SIZE = 16


@dataclass(frozen=True)
class Pair:
    """A context and its continuation, to be scored with the random numbers of their question."""

    strings: tuple[str, str]
    ids: tuple[list[int], list[int]]
    question: tuple[int, ...]
    cut_tokens: int


class TextScores(TemplateLM):
    """Likelihoods of given texts, with what all requests of a model share."""

    def _set_up(
        self, checkpoint: Checkpoint, args: ModelArgs, responses: Responses, ranks: Ranks
    ) -> None:
        super().__init__()
        self.checkpoint, self.args = checkpoint, args
        self.responses, self.ranks = responses, ranks
        self.shared = SharedResponses(responses, ranks)
        # Of each likelihood request that is asked just now.
        self._documents: list[str] = []
        self.soft_mask: SoftMaskConfig | None = self.args.soft_mask(
            self.checkpoint.soft_mask, self.checkpoint.name
        )
        self.tokenizer = self.checkpoint.tokenizer
        self._device = self.checkpoint.model.device
        self.batch_size = self.args.batch_size
        if self.args.hole_begins is not None and not self.checkpoint.grows_holes:
            raise ValueError(
                f"{self.checkpoint.name} does not find the length of a hole: give hole a number of "
                "tokens, or take a model of the DreamOn family"
            )
        if self.args.add_bos_token and self.tokenizer.bos_token_id is None:
            raise ValueError("add_bos_token: this tokenizer has no bos token")
        self.memory = AsMemoryAllows()
        self._auto: AutoBatch | None = None

    @property
    def max_length(self) -> int:
        """The window in tokens."""
        own = self.checkpoint.model.config.max_position_embeddings
        return own if self.args.max_length is None else min(self.args.max_length, own)

    def auto_batch(self) -> AutoBatch | None:
        """What finds how many rows run at once; None: a number is given. For all processes."""
        if self.args.batch_size == AUTO and self._auto is None:
            self._auto = AutoBatch(self.checkpoint.model, self.ranks, self.args.max_batch_size)
        return self._auto

    def batching(self) -> dict[str, Any]:
        """For the record: how many rows ran at once and why, and how often memory made it fewer."""
        auto = {} if self._auto is None else self._auto.record()
        return {**auto, "out_of_memory": self.memory.halved}

    @property
    def _likelihood(self) -> LikelihoodConfig:
        return LikelihoodConfig(
            samples=self.args.mc_num,
            # Of "llada", which draws so many masks together.
            batch_size=self.args.mc_batch_size or min(MC_BATCH_SIZE, self.args.mc_num),
            seed=self.args.seed,
            estimator=self.args.estimator,  # type: ignore[arg-type]  # one of ESTIMATORS
            guidance=self.args.guidance or 0.0,
        )

    def warn_of_cuts(self, cuts: Sequence[int]) -> None:
        """Says how many prompts lose tokens; `cuts`: of each."""
        if any(cuts) and self.ranks.index == 0:
            logger.warning(
                "%d of %d prompts do not fit the window of %d tokens: up to %d tokens are cut "
                "off at their left end",
                *(sum(map(bool, cuts)), len(cuts), self.max_length, max(cuts)),
            )

    def _rows_to_score(self, texts: Sequence[Request]) -> int:
        """Rows of a forward over these texts."""
        if self.args.mc_batch_size is not None or self._auto is None:
            return self.args.mc_batch_size or MC_BATCH_SIZE
        return self._auto.of_texts(texts, self._likelihood, self.soft_mask)

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Estimated log-likelihoods, and whether greedy decoding writes the continuation.

        The choices of a document use the same random numbers, also where their contexts differ.

        Raises:
            ValueError: a continuation without tokens, or longer than the window.
        """
        # A pair that two documents share is scored for each: what else is asked changes nothing.
        self._documents = [document_key(one.task_name, one.doc_id) for one in requests]
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        asked: dict[str, Pair] = {}
        keys_of_all = []
        for (strings, context_ids, continuation_ids), document in zip(
            requests, self._documents, strict=True
        ):
            key = request_key((*strings, document))
            keys_of_all.append(key)
            room = self.max_length - len(continuation_ids)
            if room < 1 or not continuation_ids:
                raise ValueError(
                    f"the continuation {strings[1][:40]!r} has {len(continuation_ids)} tokens: "
                    f"it must have some, and fit the window of {self.max_length}"
                )
            pair = (context_ids[-room:], continuation_ids)
            cut = max(0, len(context_ids) - room)
            asked[key] = Pair(strings, pair, (int(document[:15], 16),), cut)
        self.warn_of_cuts([one.cut_tokens for one in asked.values()])
        asked = self.shared.union(asked)
        by_question = defaultdict(list)
        for key, one in asked.items():
            by_question[one.question].append(key)
        groups = list(by_question.values())
        shares = [
            [key for group in groups[i : i + QUESTIONS_AT_ONCE] for key in group]
            for i in range(0, len(groups), QUESTIONS_AT_ONCE)
        ]

        def score(keys: Sequence[str]) -> list[dict[str, Any]]:
            pairs = [asked[key].ids for key in keys]
            found = estimates_and_matches(
                self.checkpoint.model,
                pairs,
                self._likelihood,
                self.soft_mask,
                questions=[asked[key].question for key in keys],
                rows=self._rows_to_score(pairs),
                memory=self.memory,
            )
            return [
                estimate_record(key, estimate)
                | {"greedy": match, "prompt_tokens_cut": asked[key].cut_tokens}
                for key, (estimate, match) in zip(keys, found, strict=True)
            ]

        def update_cache(keys: Sequence[str], answers: list[dict[str, Any]]) -> None:
            for key, one in zip(keys, answers, strict=True):
                result = (-one["nats"], one["greedy"])
                self.cache_hook.add_partial("loglikelihood", asked[key].strings, result)

        self._score(shares, score, update_cache)
        found = [self.responses[key] for key in keys_of_all]
        return [(-one["nats"], one["greedy"]) for one in found]

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """The diffusion bound on the log-likelihood of whole texts."""
        asked = self.shared.union({request_key(r.args): r.args[0] for r in requests})

        def score(keys: Sequence[str]) -> list[dict[str, Any]]:
            documents = [encode(self.checkpoint, asked[key]) for key in keys]
            windows = [((), document[: self.max_length]) for document in documents]
            estimates = rolling(
                self.checkpoint.model,
                documents,
                self._likelihood,
                self.soft_mask,
                prefix_id=self.prefix_token_id,
                max_length=self.max_length,
                rows=self._rows_to_score(windows),
                memory=self.memory,
            )
            return [estimate_record(*pair) for pair in zip(keys, estimates, strict=True)]

        def update_cache(keys: Sequence[str], answers: list[dict[str, Any]]) -> None:
            for key, one in zip(keys, answers, strict=True):
                self.cache_hook.add_partial("loglikelihood_rolling", (asked[key],), -one["nats"])

        self._score([[key] for key in asked], score, update_cache)
        return [-self.responses[request_key(request.args)]["nats"] for request in requests]

    def _score(self, shares: list[list[str]], score: Any, update_cache: Any) -> None:
        self.auto_batch()  # here all processes are, and each scores shares of its own
        self.shared.fill(
            shares, score, key_of=str, on_saved=update_cache, description="estimating likelihoods"
        )


def estimate_record(key: str, estimate: Estimate) -> dict[str, Any]:
    """An estimate as `Responses` keeps it."""
    return {"key": key, **dataclasses.asdict(estimate)}
