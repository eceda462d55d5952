"""A form that is asked for, as an automaton over a checkpoint's vocabulary."""

from __future__ import annotations

from ..constraints.compile import compile_constraint
from ..constraints.constraint import Constraint
from ..constraints.token_automaton import TokenAutomaton
from ..models.checkpoint import Checkpoint
from .prompts import encode, rules_of

# Kept of a checkpoint: some megabytes each.
MOST_KEPT = 64


def automaton_for(
    checkpoint: Checkpoint, constraint: Constraint, *, infill: bool
) -> TokenAutomaton:
    """The automaton of a form. A second for a large vocabulary, and nothing from then on.

    Args:
        infill: the text has no end token: it fills its holes.

    Raises:
        ValueError: the form is malformed, not supported or too large, or this tokenizer cannot
            write any text of it.
    """
    known, key = checkpoint.automata, (constraint, infill)
    if key not in known:
        rules, names = rules_of(checkpoint, infill=infill), checkpoint.tokenizer.get_vocab()
        automaton = TokenAutomaton(
            compile_constraint(constraint),
            checkpoint.vocabulary,
            encode=lambda text: encode(checkpoint, text, control=False),
            end_ids=rules.end_ids,
            suppressed=rules.suppressed,
            control_ids=[names[name] for name in constraint.controls],
        )
        while len(known) >= MOST_KEPT:
            known.pop(next(iter(known)))
        known[key] = automaton
    return known[key]
