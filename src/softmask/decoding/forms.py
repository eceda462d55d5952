"""A form that is asked for as an automaton over a checkpoint's vocabulary, kept for later."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from functools import partial

from ..config import require
from ..constraints.compile import compile_constraint
from ..constraints.constraint import Constraint
from ..constraints.token_automaton import TokenAutomaton
from ..models.checkpoint import Checkpoint
from .control_names import ControlNames
from .healing import SPACED
from .prompts import rules_of

# Kept of a checkpoint: some megabytes each, more where long texts were written.
MOST_KEPT = 64
MOST_BYTES = 2**30

_keeping = threading.Lock()
_here = threading.local()


class FormWanted(Exception):
    """A form is not compiled yet, and this thread does not: `compile` is for another one.

    `form` is the same for requests that want the same.
    """

    def __init__(self, form: Hashable, compile: Callable[[], object]) -> None:
        super().__init__("the form is not compiled yet")
        self.form, self.compile = form, compile


def only_look_up() -> None:
    """From now on a form that is not known raises `FormWanted` in this thread."""
    _here.only_looks_up = True


def automaton_for(
    checkpoint: Checkpoint, constraint: Constraint, *, infill: bool, spaced: bool = False
) -> TokenAutomaton:
    """The automaton of a form; once it is known, this takes no time.

    With 152,000 tokens a refusal takes at most 0.25 s, a form of several long strings 3 to 5 s.

    Args:
        infill: the text has no end token: it fills its holes.
        spaced: a space comes before the text of the form: that which was typed before its hole.

    Raises:
        ValueError: the form is malformed, not supported or too large, or this tokenizer cannot
            write any text of it.
        FormWanted: it is not known, in a thread that only looks up.
    """
    known, key = checkpoint.automata, (constraint, infill, spaced)
    automaton = _kept(known, key)
    if automaton is None:
        if getattr(_here, "only_looks_up", False):
            make = partial(automaton_for, checkpoint, constraint, infill=infill, spaced=spaced)
            raise FormWanted(key, make)
        automaton = _made(checkpoint, constraint, infill=infill, spaced=spaced)
        _keep(known, key, automaton)
    return automaton


Key = tuple[Constraint, bool, bool]


def _kept(known: dict[Key, TokenAutomaton], key: Key) -> TokenAutomaton | None:
    with _keeping:
        automaton = known.pop(key, None)
        if automaton is not None:
            known[key] = automaton  # the last one used
        return automaton


def _keep(known: dict[Key, TokenAutomaton], key: Key, automaton: TokenAutomaton) -> None:
    with _keeping:
        known[key] = automaton
        # Those that were not used for the longest time go first.
        while len(known) > MOST_KEPT or (
            len(known) > 1 and sum(one.nbytes for one in known.values()) > MOST_BYTES
        ):
            known.pop(next(iter(known)))


def _made(
    checkpoint: Checkpoint, constraint: Constraint, *, infill: bool, spaced: bool
) -> TokenAutomaton:
    rules, names = rules_of(checkpoint, infill=infill), ControlNames(checkpoint.tokenizer)
    unknown = [name for name in constraint.controls if name not in names.ids]
    require(not unknown, f"this tokenizer has no control tokens {', '.join(unknown)}")
    form = compile_constraint(constraint)
    return TokenAutomaton(
        form.behind_space() if spaced else form,
        checkpoint.vocabulary,
        encode=names.encode_batch,
        end_ids=rules.end_ids,
        suppressed=rules.suppressed,
        control_ids=[names.ids[name] for name in constraint.controls],
    )


def binding(
    checkpoint: Checkpoint, constraint: Constraint | None, spaced: tuple[int, ...], *, infill: bool
) -> tuple[TokenAutomaton | None, tuple[int, ...] | None]:
    """What binds a canvas, and the columns of the holes that it binds each by itself (None: the
    text from the first hole to the last): the form that is asked for, or else that holes begin
    with the space that was typed before them.

    Args:
        spaced: columns of the holes behind such a space.

    Raises:
        ValueError: see `automaton_for`.
    """
    if constraint is not None:
        return automaton_for(checkpoint, constraint, infill=infill, spaced=bool(spaced)), None
    if spaced:
        return automaton_for(checkpoint, SPACED, infill=True), spaced
    return None, None
