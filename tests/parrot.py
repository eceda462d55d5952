"""A model for the harness that says what it is told."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval import evaluator
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

from softmask.evaluation.task_data import with_data
from softmask.evaluation.tasks import include_paths


class Parrot(LM):
    """Answers every document by a function of it, and keeps what it was asked."""

    def __init__(self, answer: Callable[[dict[str, Any]], str]) -> None:
        super().__init__()
        self.answer = answer
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def generate_until(self, requests: list[Any]) -> list[str]:
        self.asked += [request.args for request in requests]
        return [self.answer(request.doc) for request in requests]

    def loglikelihood(self, requests: list[Any]) -> list[Any]:
        raise NotImplementedError

    loglikelihood_rolling = loglikelihood


@cache
def own_tasks() -> TaskManager:
    """The definitions of this package's tasks."""
    return TaskManager(include_path=include_paths(), include_defaults=False)


def evaluate_parrot(
    names: list[str], folder: Path, answer: Callable[[dict[str, Any]], str], **options: Any
) -> tuple[dict[str, Any], Parrot]:
    """The harness' results for answers of this kind, and the model that gave them."""
    manager, model = own_tasks(), Parrot(answer)
    # It would list the packages and the hardware of this machine in every result.
    add, evaluator.add_env_info = evaluator.add_env_info, lambda results: None
    try:
        results = lm_eval.simple_evaluate(
            model,
            tasks=with_data(names, folder, manager),
            task_manager=manager,
            confirm_run_unsafe_code=True,
            bootstrap_iters=0,
            **options,
        )
    finally:
        evaluator.add_env_info = add
    return results, model
