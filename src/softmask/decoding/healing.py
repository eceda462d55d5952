"""A space before a hole: the hole's own text begins with it.

Tokens bring the space before them, so a text that ends in one, as a token of its own, is none that
a model has seen before a word. The space that is typed before a hole is therefore left off the
canvas, and the hole must begin with it: exactly one, and what follows it. Where the tokenizer
writes it apart, as before a digit, it is a token of the hole. With a tokenizer that always does
(one of characters or bytes) the text stays as it was typed; so it does before a hole whose length
the model finds, which no form can bind.
"""

from __future__ import annotations

from ..constraints.constraint import Constraint
from ..models.checkpoint import Checkpoint

# What may stand in such a hole.
SPACED = Constraint("regex", r" [^ ](?s:.)*")


def without_space(checkpoint: Checkpoint, text: str, before: str = "") -> tuple[str, bool]:
    """A text that stands before a hole without the space at its end, and whether it had one.

    Args:
        before: what stands before the text; a space that nothing stands before stays.
    """
    heals = checkpoint.joins_spaces and not checkpoint.grows_holes
    if heals and text.endswith(" ") and (before + text).strip():
        return text[:-1], True
    return text, False
