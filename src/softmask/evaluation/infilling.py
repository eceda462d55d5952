"""Holes of infilling tasks: how long they are, and what is written into them.

How long a hole is has to be known before it is filled. `hole` says it: a number of tokens, that of
the reference (`oracle`), or several, which are filled side by side. Of those the likeliest stays:
the one whose tokens have the highest mean log-probability, as of `softmask.edit`. The texts on both
sides of a hole stay as they are, byte for byte, as only what the hole was filled with is an answer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from ..config import SamplingConfig, SoftMaskConfig
from ..decoding.forms import automaton_for
from ..decoding.healing import Hole, open_hole
from ..decoding.prompts import encode, rules_of
from ..models.checkpoint import Checkpoint
from ..serving.edits import run_all, score_of
from ..serving.request import Request
from .batching import Row
from .config import ModelArgs, TaskArgs


class OpenHole(NamedTuple):
    """A hole as a canvas holds it: the tokens before it, at what lengths, and what was cut off."""

    hole: Hole
    before_ids: tuple[int, ...]
    lengths: tuple[int, ...]
    cut_tokens: int


def opened(
    checkpoint: Checkpoint,
    args: ModelArgs,
    context: str,
    task: TaskArgs,
    *,
    first_ids: Sequence[int],
    window: int,
) -> OpenHole:
    """The hole between a prompt and the suffix of its task.

    A canvas that does not fit the window loses tokens farthest from the hole: at the left end of
    the prompt, and, where that is gone, at the right end of the suffix.

    Args:
        first_ids: what every prompt begins with.
        window: the most tokens of a canvas.

    Raises:
        ValueError: the hole alone does not fit the window.
    """

    def encode_text(text: str) -> list[int]:
        return encode(checkpoint, text, control=False)

    suffix = task.suffix or ""
    hole = open_hole(checkpoint, context, suffix, encode_text, heal=args.token_healing)
    if args.hole_lengths is None:
        whole = len(encode_text(hole.begins + task.reference + hole.ends))
        wanted: tuple[int, ...] = (max(1, whole),)
    else:
        wanted = tuple(length + hole.taken for length in args.hole_lengths)
    # What is written anew with a hole is none of its own tokens.
    most = task.new_tokens + hole.taken
    lengths = tuple(sorted({min(length, most) for length in wanted}))
    before, room = [*first_ids, *hole.before_ids], window - lengths[-1]
    if room < 1:
        raise ValueError(
            f"a hole of {lengths[-1]} tokens leaves no room for a prompt in a window of {window}: "
            "make it smaller by hole"
        )
    excess = max(0, len(before) + len(hole.after_ids) - room)
    left = min(excess, len(before))
    after = hole.after_ids[: len(hole.after_ids) - (excess - left)]
    return OpenHole(replace(hole, after_ids=after), tuple(before[left:]), lengths, excess)


def fill(
    checkpoint: Checkpoint,
    rows: Sequence[Row],
    soft_mask: SoftMaskConfig | None,
    sampling_of: Callable[[Row, int], SamplingConfig],
) -> list[dict[str, Any]]:
    """What is written into the holes of some rows, as `Responses` keep it; `drafts` are all
    lengths, the likeliest first.

    Args:
        sampling_of: the settings of a row's hole of so many tokens.

    Raises:
        ValueError: a setting that cannot be, or a canvas that the model does not take.
    """
    started, mask_id = time.perf_counter(), checkpoint.model.mask_id
    requests, owners = [], []
    for row in rows:
        hole = row.hole
        assert hole is not None
        form = None
        if hole.form is not None:
            form = automaton_for(checkpoint, hole.form, infill=True)
        for length in row.lengths:
            requests.append(
                Request(
                    (*row.ids, *[mask_id] * length, *hole.after_ids),
                    sampling_of(row, length),
                    soft_mask=soft_mask,
                    rules=rules_of(checkpoint, infill=True),
                    seed=row.seed,
                    top_logprobs=1,
                    constraint=form,
                )
            )
            owners.append((row, hole, length))
    drafts: dict[str, list[dict[str, Any]]] = {row.key: [] for row in rows}
    for (row, hole, length), (events, result) in zip(
        owners, run_all(checkpoint, requests), strict=True
    ):
        ids = result.ids[len(row.ids) : len(row.ids) + length]
        draft = {
            "text": hole.middle(checkpoint.decode(ids, skip_special_tokens=True)),
            "tokens": length,
            "score": score_of(events),
            "forwards": result.forwards,
        }
        drafts[row.key].append(draft)
    seconds = (time.perf_counter() - started) / len(rows)
    return [_record(row, drafts[row.key], round(seconds, 4)) for row in rows]


def _record(row: Row, drafts: list[dict[str, Any]], seconds: float) -> dict[str, Any]:
    assert row.hole is not None
    drafts.sort(key=lambda draft: (-draft["score"], draft["tokens"]))
    best = drafts[0]
    return {
        "key": row.key,
        "text": best["text"],
        "finish_reason": "stop",
        "prompt_tokens": len(row.ids) + len(row.hole.after_ids),
        "prompt_tokens_cut": row.cut_tokens,
        "tokens": best["tokens"],
        "forwards": sum(draft["forwards"] for draft in drafts),
        "seconds": seconds,
        "seed": row.seed,
        "drafts": drafts,
    }
