"""Given texts over HTTP: how likely choices are behind a prompt, and a prompt's own tokens.

No HTTP here: `server.py` has the routes.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..decoding.likelihood import Estimator, LikelihoodConfig, TokenScore
from ..decoding.prompts import pieces
from ..decoding.score import BATCH_SIZE, SAMPLES, pairs_of
from ..models.checkpoint import Checkpoint
from .detokenizer import Token
from .protocol import (
    MOST_SEED,
    MOST_TEXTS,
    CompletionRequest,
    Conversed,
    Logged,
    SoftMaskField,
    TokenIds,
)
from .scoring import ScoreRequest, ScoreResult
from .service import Job, Service
from .strict import Text

MOST_SAMPLES = 4096


class ScoreExtension(BaseModel):
    """The key `softmask` of a request to score."""

    model_config = ConfigDict(extra="forbid", strict=True)

    estimator: Estimator = Field(
        "masks",
        description="masks: sampled masks, a bound with an error; chain: one forward a token, from "
        "the left, exact; llada: the bound as LLaDA's evaluation draws it; one_step: all tokens "
        "masked at once, one forward a choice",
    )
    samples: int = Field(
        SAMPLES, ge=1, le=MOST_SAMPLES, description="masks that are drawn of each choice"
    )
    batch_size: int | None = Field(
        None,
        ge=1,
        le=MOST_SAMPLES,
        description=f"of llada: masks that are drawn together, default {BATCH_SIZE}; whole groups "
        "of `samples` count",
    )
    guidance: float = Field(
        0.0, ge=0, description="classifier-free guidance w: twice the forwards, no likelihood"
    )
    soft_mask: SoftMaskField = Field(
        "checkpoint",
        description="the checkpoint's parameters, a preset's by its name, those that change (of "
        "the preset `feedback`), or null: plain",
    )
    deadline: float | None = Field(
        None, gt=0, le=86400, description="seconds after which the request is given up"
    )

    @model_validator(mode="after")
    def _groups(self) -> ScoreExtension:
        if self.batch_size is not None and self.estimator != "llada":
            raise ValueError("batch_size is of the estimator llada: a server batches by itself")
        return self


Choice = Annotated[Text, Field(min_length=1)] | TokenIds


class ScoreBody(Conversed):
    """POST /v1/score: log-probabilities of choices behind a prompt or a conversation."""

    kind = "score"

    model: Text | None = None
    prompt: Text | TokenIds | None = None
    choices: list[Choice] = Field(min_length=1, max_length=MOST_TEXTS, fail_fast=True)
    seed: int = Field(0, ge=0, lt=MOST_SEED)
    softmask: ScoreExtension = Field(default_factory=ScoreExtension)
    user: Logged | None = None

    @model_validator(mode="after")
    def _one_prompt(self) -> ScoreBody:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either prompt or messages")
        return self


def score_request(service: Service, asked: ScoreBody) -> ScoreRequest:
    """What is asked as a request of the engine.

    Raises:
        ValueError: one sentence on what cannot be done.
    """
    checkpoint, extension = service.checkpoint, asked.softmask
    prompt: Any = asked.prompt
    if asked.messages is not None:
        prompt = service.conversation(asked.messages, **asked.template_options)
    pairs = pairs_of(checkpoint, prompt, asked.choices, service.encode_text)
    return ScoreRequest(
        tuple(pairs),
        LikelihoodConfig(
            samples=extension.samples,
            batch_size=extension.batch_size or BATCH_SIZE,
            seed=asked.seed,
            estimator=extension.estimator,
            guidance=extension.guidance,
        ),
        service.soft_mask_of(extension.soft_mask),
        questions=(tuple(pairs[0][0]),) * len(pairs),
        deadline=service.seconds_left(asked.arrived, extension.deadline),
    )


def score_answer(name: str, wanted: ScoreRequest, result: ScoreResult) -> dict[str, Any]:
    """The answer, in the form of vLLM's scores."""
    data = [
        {
            "index": index,
            "object": "score",
            "score": -one.nats,
            "error": None if math.isnan(one.error) else one.error,
            "tokens": one.tokens,
        }
        for index, one in enumerate(result.estimates)
    ]
    prompt_tokens = len(wanted.requests[0][0]) + sum(one.tokens for one in result.estimates)
    return {
        "id": f"score-{secrets.token_hex(12)}",
        "object": "list",
        "created": int(time.time()),
        "model": name,
        "data": data,
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": 0,
            "total_tokens": prompt_tokens,
        },
        "softmask": {"estimator": wanted.config.estimator, **result.cost()},
    }


# The prompt's own tokens, in completions with `echo`.


def echo_request(
    service: Service, asked: CompletionRequest, jobs: Sequence[Job]
) -> ScoreRequest | None:
    """The chains of the prompts that are echoed with log-probabilities; None: none are.

    The first token of a text has nothing before it that could predict it, and no share.
    """
    prompts = [prompt_of(service, job) for job in jobs[:: asked.n]]
    pairs = [_pair(service, ids) for ids in prompts if len(ids) > 1]
    if asked.top is None or not pairs:
        return None
    return ScoreRequest(
        tuple(pairs),
        LikelihoodConfig(estimator="chain"),
        service.soft_mask_of(asked.softmask.soft_mask),
        top=asked.top,
        deadline=service.seconds_left(asked.arrived, asked.softmask.deadline),
    )


def _pair(service: Service, ids: list[int]) -> tuple[list[int], list[int]]:
    """What of a prompt is scored, behind what: its last tokens, where not all are wanted."""
    limit = service.config.echo_tokens
    start = 1 if limit is None else max(1, len(ids) - limit)
    return ids[:start], ids[start:]


def prompt_of(service: Service, job: Job) -> list[int]:
    """The prompt of a job."""
    mask_id = service.checkpoint.model.mask_id
    return [token for token in job.request.ids if token != mask_id]


def echo_tokens(
    checkpoint: Checkpoint, ids: Sequence[int], scores: Sequence[TokenScore]
) -> list[Token]:
    """A prompt's tokens with what they add to the text and, of the last ones, their scores."""
    tokens = [Token(*pair) for pair in zip(ids, pieces(checkpoint, ids), strict=True)]
    start = len(ids) - len(scores)
    scored = zip(tokens[start:], scores, strict=True)
    return tokens[:start] + [
        Token(token.id, token.text, score.logprob, score.top) for token, score in scored
    ]
