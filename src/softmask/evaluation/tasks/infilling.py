"""Infilling tasks: a model gets what stands on both sides of a hole.

lm-eval hands a model one text and settings. So the text is what stands before the hole, and the
settings have what stands behind it, and what was there, of which a model may take the length
(`hole=oracle`). A task is of this kind by `class: !function ...Infilling` in its YAML; rows need
the fields `suffix` and `canonical_solution`, as those of HumanEval-Infilling have.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask

from .programs import Attempts, Row, Test, attempts_of, helpers_of

__all__ = ["Infilling", "attempts", "exact_match_results"]


class Infilling(ConfigurableTask):
    """A task of the harness whose requests say what stands behind the hole."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config={k: v for k, v in config.items() if k != "class"})

    def construct_requests(self, doc: Row, ctx: str, **kwargs: Any) -> Instance:
        """The request of lm-eval, with the texts beside the hole in its settings."""
        request = super().construct_requests(doc, ctx, **kwargs)
        assert isinstance(request, Instance)
        text, settings = request.arguments
        ends = {"suffix": doc["suffix"], "reference": doc["canonical_solution"]}
        request.arguments = (text, settings | ends)
        return request


def attempts(answers: Sequence[Sequence[str]], docs: Sequence[Row]) -> Attempts:
    """Programs are what stands before the hole, the answer, and what stands behind it."""
    return attempts_of(
        answers, docs, lambda text, doc: doc["prompt"] + text + doc["suffix"], _tests
    )


def _tests(doc: Row) -> dict[str, Test]:
    # A prompt ends anywhere, so that the functions beside the one to complete are read off the
    # whole reference.
    whole = doc["prompt"] + doc["canonical_solution"] + doc["suffix"]
    helpers = helpers_of(whole, doc["entry_point"])
    return {"pass@1": Test(f"{helpers}{doc['test']}\ncheck({doc['entry_point']})")}


def exact_match_results(doc: Row, answers: list[str]) -> dict[str, float]:
    """1 where an answer is the reference to the letter; also for the rows of each language."""
    found = float(answers[0] == doc["canonical_solution"])
    return {"exact_match": found, f"exact_match_{doc['language']}": found}
