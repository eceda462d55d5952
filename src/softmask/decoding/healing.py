"""What stands at the ends of a hole: a space before it, or tokens that the hole cuts short.

Tokens bring the space before them, so a text that ends in one, as a token of its own, is none that
a model has seen before a word. The space that is typed before a hole is therefore left off the
canvas, and the hole must begin with it: exactly one, and what follows it. Where the tokenizer
writes it apart, as before a digit, it is a token of the hole. With a tokenizer that always does
(one of characters or bytes) the text stays as it was typed; so it does before a hole whose length
the model finds, which no form can bind.

Where a text is cut at any place, as benchmarks of infilling do, the cut may fall into a token:
`ret` stands before a hole that goes on with `urn`. With `open_hole(..., heal=True)` the token at
each end is written anew with the hole, whose text must begin and end with what was there.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from ..constraints.constraint import Constraint
from ..models.checkpoint import Checkpoint

# What may stand in such a hole.
SPACED = Constraint("regex", r" [^ ](?s:.)*")


def without_space(checkpoint: Checkpoint, text: str, before: str = "") -> tuple[str, bool]:
    """A text that stands before a hole without the space at its end, and whether it had one.

    Args:
        before: what stands before the text; a space that nothing stands before stays.
    """
    spaced = text.endswith(" ") and bool((before + text).strip())
    if spaced and checkpoint.joins_spaces and not checkpoint.grows_holes:
        return text[:-1], True
    return text, False


# Tokens to look at for one that ends, or begins, with a whole character.
MOST_OF_A_CHARACTER = 4


@dataclass(frozen=True)
class Hole:
    """A hole between two texts.

    `begins` and `ends` are what its text has to begin and end with: the tokens at both ends that
    are written anew, `taken` of them, and that are not among the ids.
    """

    before_ids: tuple[int, ...]
    after_ids: tuple[int, ...]
    begins: str = ""
    ends: str = ""
    taken: int = 0

    @property
    def form(self) -> Constraint | None:
        """What the text of the hole has to look like; None: anything."""
        if not self.taken:
            return None
        return Constraint("regex", f"{re.escape(self.begins)}(?s:.)*{re.escape(self.ends)}")

    def middle(self, text: str) -> str:
        """What stands between the two texts where this is the text of the hole."""
        return text.removeprefix(self.begins).removesuffix(self.ends)


def open_hole(
    checkpoint: Checkpoint,
    before: str,
    after: str,
    encode_text: Callable[[str], list[int]],
    *,
    heal: bool = False,
) -> Hole:
    """The hole between two texts.

    Args:
        heal: the token at each end is written anew with the hole. Where that token is a part of a
            character, so are those that make the character whole.
    """
    before_ids, after_ids = encode_text(before), encode_text(after)
    if not heal:
        return Hole(tuple(before_ids), tuple(after_ids))
    begins, left = "", 0
    for count in range(1, min(MOST_OF_A_CHARACTER, len(before_ids)) + 1):
        kept = checkpoint.decode(before_ids[:-count])
        if before.startswith(kept) and kept != before:
            begins, left = before[len(kept) :], count
            break
    ends, right = "", 0
    for count in range(1, min(MOST_OF_A_CHARACTER, len(after_ids)) + 1):
        first = checkpoint.decode(after_ids[:count])
        if first and after.startswith(first):
            ends, right = first, count
            break
    kept_ids = tuple(before_ids[: len(before_ids) - left])
    return Hole(kept_ids, tuple(after_ids[right:]), begins, ends, left + right)
