"""AIME, GSM8K-Platinum and RULER: read from their releases' files, judged, and run as suites."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lm_eval
import pytest
from evaluation_files import AIME25_ROWS, RULER_ROW, lines_of, write_reasoning_files
from lm_eval.tasks._yaml_loader import load_yaml
from parrot import evaluate_parrot, own_tasks
from test_evaluate import unreachable

from softmask.cli.main import main
from softmask.evaluation.config import EvalConfig, model_args
from softmask.evaluation.suites import SUITES, cells
from softmask.evaluation.task_data import LAYOUTS, overrides, read_dataset, with_data
from softmask.evaluation.tasks import FOLDER
from softmask.evaluation.tasks.ruler import RULER

PLATINUM = [name for name in LAYOUTS if name.startswith("gsm8k_platinum")]
AIME = ["aime", "aime24", "aime25"]
UPSTREAM = Path(lm_eval.__file__).parent / "tasks"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_reasoning_files(tmp_path_factory.mktemp("reasoning"))


def boxed(doc: dict[str, Any]) -> str:
    answer = next(doc[name] for name in ("Answer", "answer") if name in doc)
    return rf"Adding up, we get $7$ and then \boxed{{{answer}}}."


def of_platinum(doc: dict[str, Any]) -> str:
    answer = doc["answer"].partition("#### ")[2]
    return f"It is 7. The answer is {answer}. The final answer is {answer}\n#### {answer}"


def needles(doc: dict[str, Any]) -> str:
    return " ".join(doc["outputs"]).upper()


@pytest.mark.parametrize(
    ("tasks", "reference"),
    [(AIME, boxed), (PLATINUM, of_platinum), (list(RULER), needles)],
    ids=["aime", "platinum", "ruler"],
)
def test_reference_answers_are_right_and_others_wrong(folder, tasks, reference) -> None:
    for answer, wanted in ((reference, 1), (lambda doc: "It is 7.", 0)):
        results, _ = evaluate_parrot(tasks, folder, answer)
        found = {
            (task, name): value
            for task in tasks
            for name, value in results["results"][task].items()
            if "," in name and "_stderr" not in name
        }
        assert {task for task, _ in found} == set(tasks)
        assert set(found.values()) == {wanted}


def test_the_answer_of_a_needle_counts_by_the_part_that_is_found(folder) -> None:
    results, model = evaluate_parrot(["niah_single_1"], folder, lambda doc: "Here: 5437923")
    assert results["results"]["niah_single_1"]["4096,none"] == 0.5
    prompt, settings = model.asked[0]
    assert prompt == f"{RULER_ROW['input']} {RULER_ROW['answer_prefix'].strip()}"
    assert settings["max_gen_toks"] == 128


def test_texts_of_several_lengths_have_a_score_each(folder) -> None:
    results, _ = evaluate_parrot(["ruler_vt"], folder, needles)
    found = results["results"]["ruler_vt"]
    assert (found["4096,none"], found["8192,none"]) == (1, 1)
    assert {doc["doc"]["max_length"] for doc in results["samples"]["ruler_vt"]} == {4096, 8192}


def test_the_mean_of_ruler_is_over_its_tasks(folder) -> None:
    results, _ = evaluate_parrot(["ruler"], folder, needles)
    assert len(results["group_subtasks"]["ruler"]) == len(RULER) == 13
    assert results["results"]["ruler"]["4096,none"] == 1


def test_a_tag_is_read_from_files_as_its_tasks_and_none_of_them_twice(folder) -> None:
    tagged = with_data(["math_word_problems", "aime24"], folder, own_tasks())
    assert [task.config.task for task in tagged] == AIME


@pytest.mark.parametrize("name", RULER)
def test_a_task_of_ruler_asks_and_counts_as_upstream(name: str) -> None:
    ours = load_yaml(FOLDER / "ruler" / f"{name}.yaml", resolve_func=False)
    theirs = load_yaml(
        UPSTREAM / "ruler" / f"{name.removeprefix('ruler_')}.yaml", resolve_func=False
    )
    for config in (ours, theirs):
        config["process_results"] = config["process_results"].rpartition(".")[2]
        config["metric_list"] = [metric["metric"] for metric in config["metric_list"]]
        for other in ("custom_dataset", "dataset_path", "dataset_name", "tag"):
            config.pop(other, None)
    assert ours == theirs


def test_a_quoted_cell_of_csv_goes_over_lines(folder) -> None:
    first, second = read_dataset(**overrides("aime", folder)["dataset_kwargs"])["train"]
    assert first["Question"] == "Let $x$, $y$ and $z$ exceed $1$.\n\nFind $\\log_zw$."
    assert second["Question"] == 'Call a number "geometric".'


@pytest.mark.parametrize(
    ("task", "file", "content", "sentence"),
    [
        ("aime", "aime/a.csv", b"Question,Answer\na,1\nb\n", ":2: a row needs the fields Question"),
        ("aime", "aime/a.csv", b'Question,Answer\n"a,1\n', "a.csv is no table in UTF-8"),
        ("aime", "aime/a.csv", b"Problem,Answer\na,1\n", ":1: a row needs the fields Question"),
        ("aime24", "aime24/a.parquet", b"PAR1", "a.parquet is damaged"),
        ("aime25", "aime25/a.jsonl", b"{}\n", ":1: a row needs the fields problem, answer"),
        ("ruler_vt", "ruler/4k/vt/validation.jsonl", b"{}\n", "4096, 8192, .*, not 4k"),
        (
            "ruler_vt",
            "ruler/4096/vt/validation.jsonl",
            lines_of([RULER_ROW | {"outputs": "5437923"}]),
            ":1: outputs must be a list of texts",
        ),
    ],
)
def test_a_file_that_is_no_release_is_named_with_the_line(
    tmp_path, task, file, content, sentence
) -> None:
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ValueError, match=sentence):
        read_dataset(**overrides(task, tmp_path)["dataset_kwargs"])


def test_the_suites_are_greedy_or_as_gsm8k_and_as_long_as_their_answers() -> None:
    config = EvalConfig(tasks=("any",))
    found = {
        name: {c.part.task: c for c in cells(SUITES[name], model_args({}), config)}
        for name in ("aime", "gsm8k-platinum", "ruler")
    }
    assert set(found["aime"]) == set(AIME)
    assert {c.args.max_new_tokens for c in found["aime"].values()} == {1024}
    assert {c.args.temperature for c in found["ruler"].values()} == {0.0}
    platinum = found["gsm8k-platinum"]["gsm8k_platinum_cot"]
    (dream,) = [p for p in SUITES["dream"].parts if p.task == "gsm8k_cot"]
    assert platinum.part.tokens == dream.tokens
    assert SUITES["gsm8k-platinum"].sampling == SUITES["dream"].sampling
    assert found["ruler"].keys() == RULER.keys()
    for task, cell in found["ruler"].items():
        upstream = load_yaml(FOLDER / "ruler" / f"{task}.yaml")
        assert cell.args.max_new_tokens == upstream["generation_kwargs"]["max_gen_toks"]


def words(suite: str, model, out, *more: str) -> list[str]:
    return [
        *("eval", "suite", suite, "--model", str(model), "--out", str(out), "--device", "cpu"),
        *("--max-new-tokens", "8", "--fractions", "1/4", "--modes", "plain", *more),
    ]


@pytest.mark.parametrize(
    ("suite", "task", "asked"),
    [
        ("aime", "aime25", r"\boxed{}"),
        ("gsm8k-platinum", "gsm8k_platinum_cot", "One and 1 thousand?"),
        ("ruler", "ruler_vt", "for long-word mentioned in the provided text is"),
    ],
)
def test_a_suite_runs_from_files(model, folder, tmp_path, capsys, suite, task, asked) -> None:
    more = ("--tasks", task, "--data-dir", str(folder), "--limit", "1")
    assert main(words(suite, model, tmp_path / "s", *more)) == 0
    assert task in capsys.readouterr().out
    line = (tmp_path / f"s/plain/{task}@1_4/samples_{task}.jsonl").read_text().splitlines()[0]
    assert asked in json.loads(line)["arguments"][0][0]


def test_a_system_message_of_ones_own_replaces_the_suites() -> None:
    own = EvalConfig(tasks=("any",), system_instruction="Be brief.")
    (cell, *_) = cells(SUITES["aime"], model_args({}), own)
    assert cell.config.system_instruction == "Be brief."


@pytest.mark.parametrize(
    ("suite", "message"),
    [
        ("aime", "the data of aime24 cannot be had from the Hub (no route)"),
        ("gsm8k-platinum", "the data of gsm8k_platinum_cot cannot be had from the Hub (no route)"),
        ("ruler", "make them by scripts/data/prepare.py of github.com/NVIDIA/RULER"),
    ],
)
def test_data_that_is_not_there_is_one_sentence(
    model, tmp_path, capsys, monkeypatch, suite, message
) -> None:
    monkeypatch.setattr("datasets.load_dataset", unreachable)
    assert main(words(suite, model, tmp_path / "s")) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("softmask: error: ")
    assert message in error
    assert "--data-dir" in error


def test_an_answer_of_aime_with_degrees_is_its_number(folder) -> None:
    results, _ = evaluate_parrot(["aime25"], folder, lambda doc: doc["answer"].partition("^")[0])
    assert results["results"]["aime25"]["exact_match,none"] == 1
    assert AIME25_ROWS[1]["answer"].endswith("circ")
