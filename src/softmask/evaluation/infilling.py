"""Holes of infilling tasks: how long they are, and what is written into them.

How long a hole is has to be known before it is filled, but by models that find it (`own`). `hole`
says it: a number of tokens, that of the reference (`oracle`), or several, which are filled side by
side. Of those the likeliest stays: the one whose tokens have the highest mean log-probability, as
of `softmask.edit`. The texts on both sides of a hole stay as they are, byte for byte, as only what
the hole was filled with is an answer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from ..config import SamplingConfig, SoftMaskConfig
from ..decoding.forms import automaton_for
from ..decoding.growing import Room
from ..decoding.healing import Hole, open_hole
from ..decoding.prompts import encode, last_ids, rules_of
from ..models.checkpoint import Checkpoint
from ..serving.edits import run_all, score_of
from ..serving.request import Request
from .batching import Row
from .config import ModelArgs, TaskArgs


class OpenHole(NamedTuple):
    """A hole as a canvas holds it: the tokens before it, at what lengths, what was cut off, and
    how long it may become where the model finds that."""

    hole: Hole
    before_ids: tuple[int, ...]
    lengths: tuple[int, ...]
    cut_tokens: int
    grows_to: int | None


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
    # What is written anew with a hole is none of its own tokens.
    most = task.new_tokens + hole.taken
    if args.hole_begins is not None:
        wanted: tuple[int, ...] = (args.hole_begins,)
    elif args.hole_lengths is None:
        whole = len(encode_text(hole.begins + task.reference + hole.ends))
        wanted = (max(1, whole),)
    else:
        wanted = tuple(length + hole.taken for length in args.hole_lengths)
    lengths = tuple(sorted({min(length, most) for length in wanted}))
    grows_to = None if args.hole_begins is None else most
    longest, setting = (lengths[-1], "hole") if grows_to is None else (most, "max_new_tokens")
    before, room = [*first_ids, *hole.before_ids], window - longest
    if room < 1:
        raise ValueError(
            f"a hole of {longest} tokens leaves no room for a prompt in a window of {window}: "
            f"make it smaller by {setting}"
        )
    after = (*hole.after_ids, *last_ids(checkpoint))
    excess = max(0, len(before) + len(after) - room)
    left = min(excess, len(before))
    after = after[: len(after) - (excess - left)]
    hole = replace(hole, after_ids=after)
    return OpenHole(hole, tuple(before[left:]), lengths, excess, grows_to)


def fill(
    checkpoint: Checkpoint,
    rows: Sequence[Row],
    soft_mask: SoftMaskConfig | None,
    sampling_of: Callable[[Row, int], SamplingConfig],
) -> list[dict[str, Any]]:
    """What is written into the holes of some rows, as `Responses` keep it; `drafts` are all
    lengths, the likeliest first.

    Args:
        sampling_of: the settings of a row's hole that takes so many steps at one a token.

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
            ids, steps, room = (*row.ids, *[mask_id] * length, *hole.after_ids), length, None
            if row.grows_to is not None:
                room = Room(len(ids) - length + row.grows_to)
                steps = room.rounds(ids, mask_id)
            requests.append(
                Request(
                    ids,
                    sampling_of(row, steps),
                    soft_mask=soft_mask,
                    rules=rules_of(checkpoint, infill=True),
                    seed=row.seed,
                    top_logprobs=1,
                    constraint=form,
                    room=room,
                )
            )
            owners.append((row, hole))
    drafts: dict[str, list[dict[str, Any]]] = {row.key: [] for row in rows}
    for (row, hole), (events, result) in zip(owners, run_all(checkpoint, requests), strict=True):
        filled_ids = result.ids[len(row.ids) : len(result.ids) - len(hole.after_ids)]
        draft = {
            "text": hole.middle(checkpoint.decode(filled_ids, skip_special_tokens=True)),
            "tokens": len(filled_ids),
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
