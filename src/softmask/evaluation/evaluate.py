"""One evaluation in a folder: what ran, every answer, every score.

evals/default-gsm8k_cot-soft/
    run.json              command, commit, packages, fingerprints of model and adapter, the
                          soft-mask parameters and settings that ran, when and how long,
                          what confined the programs of code tasks
    responses.0.jsonl     each answer as it came, with the forwards it took: a run that was
                          stopped goes on after them
    samples_TASK.jsonl    each sample with prompt, answer, target and scores
    results.json          the harness' own results, and `summary`: a row for each metric
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

from datasets.exceptions import DatasetNotFoundError
from lm_eval import evaluator, simple_evaluate
from lm_eval.loggers.utils import add_env_info, get_commit_from_path
from lm_eval.utils import handle_non_serializable
from rich.table import Table

from ..files import write_atomically
from ..reporting.tables import light_table
from . import record
from .config import EvalConfig, ModelArgs
from .definitions import check_tasks, confinement, files_of
from .harness import SoftMaskLM
from .responses import Responses, sample_keys
from .standard_errors import clustered_ratio
from .task_data import with_data


def _commit_here() -> str | None:
    """What git calls the commit of the folder that the command runs in; None: in no repository."""
    try:
        words = ["git", "describe", "--always"]
        done = subprocess.run(
            words, capture_output=True, text=True, check=False, env={**os.environ, "LC_ALL": "C"}
        )
    except FileNotFoundError:  # git is not installed
        return get_commit_from_path(Path.cwd())
    if done.returncode and "not a git repository" not in done.stderr:
        logging.getLogger(__name__).warning("no commit is recorded: %s", done.stderr.strip())
    return done.stdout.strip() or None


@cache
def _environment(_folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    add_env_info(found)
    return found


# The harness' own lets git complain into the terminal where the folder is in no repository.
evaluator.get_git_commit_hash = _commit_here
# It lists all packages by a process of pip's, a second or more; once is enough for all evaluations
# of a suite or a sweep.
evaluator.add_env_info = lambda storage: storage.update(_environment(Path.cwd()))


def evaluate(
    lm: SoftMaskLM,
    args: ModelArgs,
    config: EvalConfig,
    folder: Path,
    *,
    command: Sequence[str] = (),
    overwrite: bool = False,
    report: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """Evaluates a model on tasks, or goes on with what the folder holds of the same evaluation.

    Under `torchrun` or `accelerate launch` every process calls this with the same arguments.
    `report` is a callback for lines of progress.

    Returns:
        The rows of the summary (on every process): task, metric, filter, value, stderr, n, and
        the mean forwards and tokens of a sample.

    Raises:
        ValueError: the folder holds something else, an unknown task, an argument that does not
            fit, or data that is not to be had.
    """
    settings = record.settings_of(
        lm.checkpoint, args, evaluation=dataclasses.asdict(config), **files_of(config)
    )
    with contextlib.ExitStack() as stack:
        done: list[dict[str, Any]] | None = None
        problem: str | None = None
        # The first process looks, and all raise its error, so that none is left waiting.
        if lm.ranks.index == 0:
            try:
                if stack.enter_context(record.claimed(folder, settings, overwrite)) is not None:
                    done = record.summary(folder)
            except ValueError as error:
                problem = str(error)
        done, problem = lm.ranks.all_gather((done, problem))[0]
        if problem is not None:
            raise ValueError(problem)
        if done is not None:
            report(f"{folder} is finished already")
            return done
        run = {**record.origin(command), **settings, "processes": lm.ranks.count}
        own = lm.using(
            args,
            Responses(folder, lm.ranks.index),
            chat_template=config.chat_template,
            until=config.until,
        )
        return _evaluate(own, config, folder, run)


def _evaluate(
    lm: SoftMaskLM, config: EvalConfig, folder: Path, run: dict[str, Any]
) -> list[dict[str, Any]]:
    """The evaluation, in a folder that is this launch's own; `run` is its record so far."""
    first = lm.ranks.index == 0
    if first:
        run["programs"] = confinement(config)
        run["starts_before"] = record.starts_before(folder)
        record.write(folder / record.RUN, run)
    began, had = time.perf_counter(), len(lm.responses.by_key)
    results = _run_harness(lm, config)
    summary: list[dict[str, Any]] | None = None
    if first:
        assert results is not None  # the first process has them
        summary = summarise(results, lm.responses)
        seconds = {}
        for task, samples in results.pop("samples").items():
            answers = [_answers(task, sample, lm.responses) for sample in samples]
            _write_samples(folder / f"samples_{task}.jsonl", samples, answers)
            seconds[task] = _seconds(answers)
        run |= {
            "finished": record.now(),
            "seconds": round(time.perf_counter() - began, 1),
            "seconds_a_sample": seconds,
            "answers_from_before": had,
            "batching": lm.batching(),
            "forwards": sum(a["forwards"] for a in lm.responses.by_key.values()),
        }
        record.write(folder / record.RUN, run)
        found = {"summary": summary, **results}
        record.write(folder / record.RESULTS, found, handle_non_serializable)
    found_first = lm.ranks.all_gather(summary)[0]
    assert found_first is not None
    return found_first


def _run_harness(lm: SoftMaskLM, config: EvalConfig) -> dict[str, Any] | None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    manager = check_tasks(config)
    data_dir = None if config.data_dir is None else Path(config.data_dir)
    try:
        return simple_evaluate(
            model=lm,
            tasks=with_data(config.tasks, data_dir, manager),
            num_fewshot=config.num_fewshot,
            limit=config.limit,
            apply_chat_template=config.apply_chat_template,
            fewshot_as_multiturn=config.fewshot_as_multiturn and config.apply_chat_template,
            system_instruction=config.system_instruction,
            gen_kwargs=dict(config.gen_kwargs) or None,
            confirm_run_unsafe_code=config.confirm_run_unsafe_code,
            task_manager=manager,
            # Every process generates; the first one scores.
            predict_only=lm.ranks.index > 0,
        )
    except (ConnectionError, DatasetNotFoundError) as error:
        raise ValueError(
            f"the data of {', '.join(config.tasks)} cannot be had from the Hub "
            f"({str(error).splitlines()[0]}): check the network, or give --data-dir"
        ) from error


def summarise(results: dict[str, Any], responses: Responses) -> list[dict[str, Any]]:
    """A row for each task, metric and filter of the harness' results, in the task's order.

    The harness' order is that in which its samples have them, and the first may have others.
    """
    rows = []
    for task, values in results["results"].items():
        by_leaf = {leaf: results["samples"][leaf] for leaf in _leaves(task, results)}
        samples = [sample for of_leaf in by_leaf.values() for sample in of_leaf]
        spent = _spent(
            [
                _answers(leaf, sample, responses)
                for leaf, of_leaf in by_leaf.items()
                for sample in _once(of_leaf)
            ]
        )
        listed = results.get("configs", {}).get(task, {}).get("metric_list") or ()
        order = {str(one["metric"]): place for place, one in enumerate(listed)}
        names = sorted(values, key=lambda name: order.get(name.partition(",")[0], len(order)))
        for name in names:
            value = values[name]
            metric, _, filter_name = name.partition(",")
            if not filter_name or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            stderr = values.get(f"{metric}_stderr,{filter_name}")
            # A task may leave samples out of a metric.
            every = [s for s in samples if s["filter"] == filter_name and metric in s]
            measured = [s for s in every if record.is_measured(metric, s[metric])]
            own = [s[metric] for s in measured]
            if every and not own:
                continue
            if measured and all("twin_of" in s.get("doc", {}) for s in measured):
                stderr = _error_of_twins(measured, metric)
            rows.append(
                {
                    "task": task,
                    "metric": metric,
                    "filter": filter_name,
                    "value": value,
                    "stderr": stderr if isinstance(stderr, int | float) else None,
                    "n": len(own),
                    "share": record.are_shares(own),
                    **spent,
                }
            )
    return rows


def _error_of_twins(samples: list[dict[str, Any]], metric: str) -> float | None:
    """The standard error of a mean over samples that are twins of others: those of one count as
    one, which the harness does not know."""
    by_base: dict[Any, list[float]] = {}
    for sample in samples:
        by_base.setdefault(sample["doc"]["twin_of"], []).append(sample[metric])
    scores = by_base.values()
    return clustered_ratio([sum(own) for own in scores], [len(own) for own in scores])[1]


def _leaves(task: str, results: dict[str, Any]) -> list[str]:
    """The tasks that a group's score is made of; a task's own name."""
    if task in results["samples"]:
        return [task]
    return [leaf for member in results["group_subtasks"][task] for leaf in _leaves(member, results)]


def _once(samples: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each sample of a task one time, of those that it has with each filter."""
    first = min((sample["filter"] for sample in samples), default=None)
    return [sample for sample in samples if sample["filter"] == first]


def _spent(every_sample: list[list[dict[str, Any]]]) -> dict[str, float | None]:
    """Mean forwards and tokens of a sample; of likelihoods also their mean standard error.

    `tokens_per_forward` is of all texts together. The answers to each sample are meant to be there
    once.
    """
    answers = [of_one for of_one in every_sample if of_one]
    if not answers:
        return {"forwards": None, "tokens": None}
    spent: dict[str, float | None] = {
        name: round(fmean(sum(a[name] for a in of_one) for of_one in answers), 3)
        for name in ("forwards", "tokens")
    }
    every = [a for of_one in answers for a in of_one]
    if all("text" in a for a in every):
        tokens, forwards = (sum(a[name] for a in every) for name in ("tokens", "forwards"))
        spent["tokens_per_forward"] = round(tokens / forwards, 4) if forwards else None
    errors = [a["error"] for of_one in answers for a in of_one if "error" in a]
    if errors:
        spent["nats_error"] = round(fmean(errors), 5)
    return spent


def _seconds(answers: list[list[dict[str, Any]]]) -> float | None:
    """The mean seconds of writing the answers to a sample; None where texts are scored."""
    own = [sum(a.get("seconds", 0.0) for a in of_one) for of_one in answers]
    return round(fmean(own), 4) if any(own) else None


def _answers(task: str, sample: dict[str, Any], responses: Responses) -> list[dict[str, Any]]:
    """The kept answers to a sample: of each choice, of each repeat."""
    return [responses[key] for key in sample_keys(task, sample) if key in responses]


def _write_samples(
    path: Path, samples: list[dict[str, Any]], answers: list[list[dict[str, Any]]]
) -> None:
    lines = []
    for sample, of_one in zip(samples, answers, strict=True):
        spent = {
            name: [a[name] for a in of_one if name in a]
            for name in ("forwards", "tokens", "prompt_tokens_cut", "error")
        }
        lines.append(json.dumps(sample | spent, default=handle_non_serializable) + "\n")
    write_atomically(path, "".join(lines))


def table_of(rows: Sequence[dict[str, Any]], title: str | None = None) -> Table:
    """The summary as a table. Scores that are shares stay between 0 and 1."""
    table = light_table(title)
    columns = ("task", "metric", "filter", "value", "s.e.", "n", "forwards", "tokens", "TPF")
    for column in columns:
        left = column in columns[:3]
        table.add_column(
            column, justify="left" if left else "right", overflow="fold" if left else "ellipsis"
        )
    for row in rows:
        numbers = [row["value"], row["stderr"]]
        cells = ["" if number is None else f"{number:.4f}" for number in numbers]
        spent = ["" if row[n] is None else f"{row[n]:.1f}" for n in ("forwards", "tokens")]
        parallel = row.get("tokens_per_forward")
        spent.append("" if parallel is None else f"{parallel:.2f}")
        names = (row["task"], row["metric"], row["filter"])
        table.add_row(*names, *cells, str(row["n"]), *spent)
    return table
