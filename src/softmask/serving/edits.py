"""A stretch of a text written anew, as long as suits it best.

    edited = softmask.edit(checkpoint, "One day, Tom went to bed.", 9, 12)
    print(edited.text, edited.drafts[0].score)

The length of a hole is decided before it is filled. So some lengths are tried side by side, and the
likeliest draft is kept: the one whose new tokens have the highest mean log-probability, each at the
step that committed it, as the model said it before temperature and filters. What a form leaves no
choice about counts as certain. No likelihood of the text: lengths are compared, not texts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..config import SamplingConfig, from_mapping, require, shown
from ..constraints.constraint import Constraint
from ..decoding.arguments import as_count, check_keywords, row_seeds
from ..decoding.canvas_constraint import check_fits
from ..decoding.forms import binding
from ..decoding.generation import SoftMaskChoice, choose_soft_mask
from ..decoding.healing import without_space
from ..decoding.prompts import encode, first_ids, last_ids, rules_of
from ..models.checkpoint import Checkpoint
from ..rules import by_name
from ..sampling import merged
from .engine import Engine, Event, Request, Result

# Lengths that are tried between the bounds.
LENGTHS = 5
# Tokens that may be written where little is replaced.
ROOM = 8


class Draft(NamedTuple):
    """One length's text: the whole, what is new in it, its tokens, and their mean log-probability.

    `score` is -inf where nothing was read.
    """

    text: str
    replacement: str
    tokens: int
    score: float


@dataclass(frozen=True)
class Edit:
    """An edited text, of the likeliest draft; `drafts` are all of them, the likeliest first.

    `forwards` are those that the drafts took part in, each by itself.
    """

    text: str
    replacement: str
    drafts: tuple[Draft, ...]
    seed: int
    forwards: int


@dataclass(frozen=True)
class Span:
    """The characters [start, end) of a text, to be written anew.

    Raises:
        ValueError: they lie outside of the text, or bounds contradict each other.
    """

    text: str
    start: int
    end: int
    min_tokens: int | None = None
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        size, least, most = len(self.text), self.min_tokens, self.max_tokens
        require(
            0 <= self.start <= self.end <= size,
            f"the span {self.start}:{self.end} lies outside of the text, which has {size} "
            "characters: give 0 <= start <= end",
        )
        for value in (least, most):
            require(value is None or value >= 1, f"at least 1 token is to be written, not {value}")
        require(
            least is None or most is None or least <= most,
            f"at least {least} and at most {most} tokens are to be written: the least comes first",
        )

    def lengths(self, replaced: int, most_tried: int = LENGTHS) -> list[int]:
        """The lengths to try, evenly between the bounds.

        Args:
            replaced: tokens of what is replaced. From half of them to twice as many, or ROOM, may
                be written where nothing is said.
            most_tried: how many may be tried, LENGTHS at most.
        """
        least = max(1, replaced // 2) if self.min_tokens is None else self.min_tokens
        most = max(2 * replaced, ROOM, least) if self.max_tokens is None else self.max_tokens
        least = min(least, most)
        count = min(LENGTHS, most_tried, most - least + 1)
        if count == 1:
            return [(least + most) // 2]
        step = (most - least) / (count - 1)
        return [round(least + step * i) for i in range(count)]


def span_requests(
    checkpoint: Checkpoint,
    span: Span,
    constraint: Constraint | None,
    encode_text: Callable[[str], list[int]],
    sampling_of: Callable[[int], SamplingConfig],
    most_tried: int = LENGTHS,
    **settings: Any,
) -> list[Request]:
    """A request for each length that fits the form.

    Args:
        sampling_of: the settings for so many masks.
        most_tried: as of `Span.lengths`.
        settings: other fields of `Request`.

    Raises:
        ValueError: the context cannot hold a draft, or no length fits the form.
    """
    before, spaced = without_space(checkpoint, span.text[: span.start])
    ids = [*first_ids(checkpoint), *encode_text(before)]
    behind = [*encode_text(span.text[span.end :]), *last_ids(checkpoint)]
    lengths = span.lengths(len(encode_text(span.text[span.start : span.end])), most_tried)
    context = checkpoint.model.config.max_position_embeddings
    room = context - len(ids) - len(behind)
    require(
        lengths[-1] <= room,
        f"the text has {len(ids) + len(behind)} tokens beside the span, and up to {lengths[-1]} "
        f"are to be written, but the context is {context}: shorten the text, or ask for fewer",
    )
    columns = (len(ids),) if spaced else ()
    automaton, holes = binding(checkpoint, constraint, columns, infill=True)
    requests, misfit = [], None
    for length in lengths:
        canvas = (*ids, *[checkpoint.model.mask_id] * length, *behind)
        if automaton is not None and holes is None:
            try:
                check_fits(automaton, canvas, checkpoint.model.mask_id)
            except ValueError as error:  # another length may
                misfit = error
                continue
        requests.append(
            Request(
                canvas,
                sampling_of(length),
                rules=rules_of(checkpoint, infill=True),
                top_logprobs=1,
                constraint=automaton,
                holes=holes,
                **settings,
            )
        )
    if misfit is not None and not requests:
        raise misfit
    return requests


def draft_of(
    checkpoint: Checkpoint, span: Span, request: Request, events: Iterable[Event], result: Result
) -> Draft:
    """What a request came to."""
    columns = [i for i, token in enumerate(request.ids) if token == checkpoint.model.mask_id]
    new = checkpoint.decode(result.ids[columns[0] : columns[-1] + 1], skip_special_tokens=True)
    before = span.text[: span.start]
    if without_space(checkpoint, before)[1]:
        new = new.removeprefix(" ")
    return Draft(f"{before}{new}{span.text[span.end :]}", new, len(columns), score_of(events))


def score_of(events: Iterable[Event]) -> float:
    """The mean log-probability of the tokens that these events committed; -inf: none was read."""
    values = [
        float(value)
        for event in events
        if event.logprobs is not None
        for value in event.logprobs.logprob_N
        if not math.isnan(value)
    ]
    return math.fsum(values) / len(values) if values else -math.inf


def edit_of(drafts: Sequence[Draft], seed: int, forwards: int) -> Edit:
    """The likeliest of some drafts; of equals the shortest."""
    order = sorted(drafts, key=lambda draft: (-draft.score, draft.tokens))
    return Edit(order[0].text, order[0].replacement, tuple(order), seed, forwards)


def edit(
    checkpoint: Checkpoint,
    text: str,
    start: int,
    end: int,
    *,
    min_new_tokens: int | None = None,
    max_new_tokens: int | None = None,
    soft_mask: SoftMaskChoice = "checkpoint",
    seed: int | None = None,
    constraint: Constraint | None = None,
    **sampling: Any,
) -> Edit:
    """Writes the characters [start, end) of a text anew, as long as suits them best.

    Args:
        min_new_tokens, max_new_tokens: between them some lengths are tried; default: from half as
            many as are replaced to twice as many, or 8.
        soft_mask, seed: as of `generate`; every length draws from the same seed.
        constraint: the form of what is written.
        sampling: fields of SamplingConfig; the others are the checkpoint's own for such a text,
            and steps one per token.

    Raises:
        ValueError: a span outside of the text, bounds that contradict each other, a draft that
            the context cannot hold, an unknown setting, or a form that no length fits.
    """
    check_keywords(edit, sampling)
    require(isinstance(text, str), f"the text to edit is a str, not {shown(text)}")
    start, end = as_count("start", start, 0), as_count("end", end, 0)
    if min_new_tokens is not None:
        min_new_tokens = as_count("min_new_tokens", min_new_tokens)
    if max_new_tokens is not None:
        max_new_tokens = as_count("max_new_tokens", max_new_tokens)
    span = Span(text, start, end, min_new_tokens, max_new_tokens)
    kind, soft = checkpoint.kind_of(text), choose_soft_mask(soft_mask, checkpoint.soft_mask)
    (seed,) = row_seeds(seed, 1)

    def sampling_of(masks: int) -> SamplingConfig:
        given = {"steps": masks, **merged(kind.sampling, by_name(sampling))}
        return from_mapping(SamplingConfig, given, "sampling")

    requests = span_requests(
        checkpoint,
        span,
        constraint,
        lambda part: encode(checkpoint, part),
        sampling_of,
        soft_mask=soft,
        seed=seed,
    )
    drafts, forwards = [], 0
    for request, (events, result) in zip(requests, run_all(checkpoint, requests), strict=True):
        drafts.append(draft_of(checkpoint, span, request, events, result))
        forwards += result.forwards
    return edit_of(drafts, seed, forwards)


def run_all(
    checkpoint: Checkpoint, requests: Sequence[Request]
) -> list[tuple[list[Event], Result]]:
    """Runs requests side by side, without a thread: what each committed, and what it came to.

    Raises:
        ValueError: one that cannot be run, or that failed.
    """
    k = max(0 if one.soft_mask is None else one.soft_mask.k for one in requests)
    engine = Engine(
        checkpoint.model,
        positions=sum(request.positions for request in requests),
        queue=len(requests),
        running=len(requests),
        k=min(max(8, k), checkpoint.model.config.vocab_size),
    )
    handles = [engine.submit(request) for request in requests]
    while engine.run_once():
        pass
    found = []
    for handle in handles:
        result = handle.result(0)
        if result.finish_reason != "done":
            raise result.failure(result.error or "the text could not be written")
        found.append((handle.pending(), result))
    return found
