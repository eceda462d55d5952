"""A commit rule: a token is committed once it has led for some steps and is likely enough.

softmask generate "One day, Tom" --alg steady:steady --alg-options patience=2,least=0.6
softmask bench frontier --only full,threshold-.9,steady:steady        (both from this folder)
"""

from torch import Tensor

import softmask

TRIED = [{"patience": 1, "least": 0.5}, {"patience": 1}, {"patience": 2}]


@softmask.commit_rule("steady", returns="rows", state={"token": -1, "steps": 0}, frontier=TRIED)
def steady(rows: softmask.MaskedRows, *, patience: int = 1, least: float = 0.8) -> Tensor:
    """Tokens that have led for `patience` steps and are likelier than `least`."""
    same_N = rows.tokens_N == rows.state["token"]
    steps_N = (rows.state["steps"] + 1) * same_N
    rows.state.update(token=rows.tokens_N, steps=steps_N)
    return (steps_N >= patience) & (rows.probability_N > least)
