"""Tasks that make their rows: after ParallelBench, and 9x9 Sudoku by difficulty."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval")

from parrot import evaluate_parrot, own_tasks
from paths import ROOT
from test_evaluate import result

from softmask.cli.main import main
from softmask.evaluation.evaluate import summarise
from softmask.evaluation.responses import Responses
from softmask.evaluation.suites import SUITES
from softmask.evaluation.tasks import parallelbench, sudoku_9x9
from softmask.hub.checkpoints import find
from softmask.puzzles.held_out import held_out_digest, read_held_out
from softmask.puzzles.sudoku import solution_of
from softmask.puzzles.sudoku_guesses import difficulty

Doc = dict[str, Any]
PARALLEL = [part.task for part in SUITES["parallelbench"].parts]


def right(doc: Doc) -> str:
    """An answer from what is asked alone, by other means than the generator's."""
    asked = doc["input"]
    if "symbols" in doc:
        a, b, c, d = asked.split(", ")
        return "\n".join(map(", ".join, ([a, b, c, d], [b, a, d, c], [c, d, a, b], [d, c, b, a])))
    if "words" in doc:
        return f"All of {asked.replace(',', ' and')} came to mind."
    if "operation" not in doc:
        whole = solution_of(asked.replace("\n", ""))
        assert whole is not None
        return "\n".join(" ".join(whole[at : at + 4]) for at in range(0, 16, 4))
    shown, request = asked.splitlines()
    line = json.loads(shown.partition(": ")[2])
    name = (re.findall('"(.*)"', request) or [""])[0]
    place = int((re.findall(r"umber (\d+)", request) or ["1"])[0])
    if "reverse" in request:
        line.reverse()
    elif "sorted" in request:
        line.sort(key=str.split)
    elif "other order" in request:
        line.append(line.pop(0))
    elif "joins" in request:
        line.insert(place - 1, name)
    elif "home" in request:
        del line[place - 1]
    elif "gives its place" in request:
        line[place - 1] = name
    return f"Here it is: {json.dumps(line)}."


def wrong(doc: Doc) -> str:
    """An answer that looks right and is not."""
    if "symbols" in doc:
        return "\n".join([",".join(doc["symbols"])] * 4)
    if "words" in doc:
        return f"Here are the the words {doc['input']}."
    if "operation" not in doc:  # a grid by the rules, with other givens
        return doc["output"].translate(str.maketrans("1234", "2143"))
    if doc["operation"] == "shuffle":
        return json.dumps(doc["line"])
    names = json.loads(doc["output"])
    return json.dumps([*names[:-2], names[-1], names[-1]])


@pytest.mark.parametrize(("answer", "score"), [(right, 1), (wrong, 0), (lambda doc: "", 0)])
def test_a_reference_solver_gets_all_right_and_wrong_answers_none(
    answer: Callable[[Doc], str], score: int
) -> None:
    # A folder of data changes nothing for them.
    results, model = evaluate_parrot(["parallelbench"], Path(), answer, limit=40)
    found = {name: values["solved,none"] for name, values in results["results"].items()}
    assert found == dict.fromkeys([*PARALLEL, "parallelbench"], score)
    assert len(model.asked) == 40 * len(PARALLEL)


def test_prompts_show_another_document_and_sentences_none() -> None:
    _, model = evaluate_parrot(
        ["parallelbench_line_copy", "parallelbench_sentence_easy"], Path(), right, limit=1
    )
    (line, settings), (sentence, _) = model.asked
    example, asked = line.split("\n\n")
    assert example.splitlines()[-1] == example.splitlines()[0].partition(": ")[2]
    assert asked.endswith(" Give the list alone, in the same format.\n")
    assert settings["max_gen_toks"] == 96
    assert sentence.count("\n") == 1


@pytest.mark.parametrize(
    ("operation", "answer", "score"),
    [
        ("insert_random", '["A B", "New One", "C D", "E F"]', 1),
        ("insert_random", "[New One, A B, C D, E F]", 1),  # without quotation marks
        ("insert_random", '["A B", "New One", "E F", "C D"]', 0),
        ("insert_random", '["A B", "C D", "E F"]', 0),
        ("replace_random", '["A B", "C D", "New One"]', 1),
        ("replace_random", '["A B", "New One", "New One"]', 0),
        ("replace_random", '["A B", "C D", "E F"]', 0),
        ("remove_random", '["A B", "E F"]', 1),
        ("remove_random", '["E F", "A B"]', 0),
        ("remove_random", '["A B"]', 0),
        ("shuffle", '["C D", "A B", "E F"]', 1),
        ("shuffle", '["C D", "A B", "A B"]', 0),
        ("shuffle", "A B, C D, E F", 0),
    ],
)
def test_where_a_place_is_free_every_outcome_is_right(operation, answer, score) -> None:
    doc = {"operation": operation, "line": ["A B", "C D", "E F"], "name": "New One"}
    assert parallelbench.line_results(doc, [answer]) == {"solved": score}


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("Two dogs ran after balls kicked in the park.", 1),
        ('"The dog in the park kicks a ball!"', 1),
        ("The park's only dog likes ball-kicking.", 1),
        ("The dogmatic parker kicked a balloon.", 0),  # other words
        ("Dog, ball, park, throw.", 0),  # a list
        ("The dog threw a ball.", 0),  # no park
        ("The dog ran. The ball was thrown in the park.", 0),  # two sentences
        ("The dog threw the the ball in the park.", 0),
        ("The dog threw a ball in the park", 0),
    ],
)
def test_a_sentence_is_one_has_the_words_and_does_not_stutter(answer, score) -> None:
    doc = {"words": ["dog", "ball", "park", "kick"]}
    assert parallelbench.sentence_results(doc, [answer]) == {"solved": score}


@pytest.mark.parametrize(
    ("word", "forms", "others"),
    [
        ("bee", "bee bees bee's", "been beer being"),
        ("ski", "skis skied skiing", "skill skin"),
        ("pet", "pets petted petting", "petal"),
        ("pot", "pot pots potted", "potato potion"),
        ("hike", "hikes hiked hiking", "hi"),
        ("market", "markets marketed marketing", "marketable"),
        ("hop", "hops hopping", "hope hoped hoping"),
        ("alchemy", "alchemies", "alchemist"),
        ("volcano", "volcanoes volcanos", "volcanic"),
        ("sphinx", "sphinxes", "sphincter"),
    ],
)
def test_a_given_word_is_used_by_its_own_forms_alone(word, forms, others) -> None:
    def is_used(form: str) -> float:
        answer = f"They say {form} here."
        return parallelbench.sentence_results({"words": [word]}, [answer])["solved"]

    assert {form: is_used(form) for form in forms.split()} == dict.fromkeys(forms.split(), 1.0)
    assert {form: is_used(form) for form in others.split()} == dict.fromkeys(others.split(), 0.0)


def test_documents_are_the_same_each_time_and_no_two_ask_the_same() -> None:
    for name in PARALLEL:
        kind = name.removeprefix("parallelbench_")
        first, again = parallelbench.documents(kind=kind), parallelbench.documents(kind=kind)
        rows = {split: list(first[split]) for split in first}
        assert rows == {split: list(again[split]) for split in again}
        asked = [row["input"] for split in rows.values() for row in split]
        assert len(rows["test"]) == 100
        assert len(asked) == len(set(asked)) == 120
        if kind.startswith("line_"):
            lengths = [len(row["line"]) for row in rows["test"]]
            assert {n: lengths.count(n) for n in lengths} == dict.fromkeys((3, 4, 5, 6), 25)


def test_every_reference_answer_and_its_end_fit_the_tokens_of_its_task() -> None:
    # The bundled vocabulary is small, so the same text takes more tokens than with any other.
    tokenizer = find("default").tokenizer
    suite = {part.task: part.tokens for part in SUITES["parallelbench"].parts}
    index = own_tasks().task_index
    for makes, tasks in ((parallelbench, PARALLEL), (sudoku_9x9, index["sudoku_9x9"].cfg["task"])):
        for task in tasks:
            tokens = index[task].cfg["generation_kwargs"]["max_gen_toks"]
            assert suite.get(task, tokens) == tokens
            # All grids are of one length.
            few = {"samples": 1} if makes is sudoku_9x9 else {}
            splits = makes.documents(**index[task].cfg["dataset_kwargs"] | few)
            texts = [row["output"] for rows in splits.values() for row in rows]
            lengths = [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
            assert max(lengths) < tokens, task


def test_a_kind_that_there_is_not_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"a kind of ParallelBench is line_copy, .*, not 'tower'"):
        parallelbench.documents(kind="tower")
    with pytest.raises(ValueError, match="samples must be at least 1, not 0"):
        parallelbench.documents(kind="sudoku", samples=0)


@pytest.mark.long  # all tasks
def test_the_suite_runs_and_a_sweep_goes_over_its_tasks(model, tmp_path) -> None:
    few = ("--limit", "1", "--device", "cpu", "--max-new-tokens", "8")
    tasks = "parallelbench_line_copy,parallelbench_sudoku"
    suite = ("eval", "suite", "parallelbench", "--model", str(model), "--tasks", tasks)
    more = ("--modes", "plain", "--fractions", "1/4", "--out", str(tmp_path / "suite"))
    assert main([*suite, *more, *few]) == 0
    found = {path.parent.name for path in (tmp_path / "suite").rglob("results.json")}
    assert found == {"parallelbench_line_copy@1_4", "parallelbench_sudoku@1_4"}
    assert result(tmp_path / "suite/plain/parallelbench_sudoku@1_4")["summary"][0]["n"] == 1
    sweep = ("eval", "sweep", "--tasks", tasks, "--model", str(model), "--steps", "1/2")
    assert main([*sweep, "--out", str(tmp_path / "sweep"), *few]) == 0
    swept = (tmp_path / "sweep").rglob("results.json")
    found = {path.parent.relative_to(tmp_path / "sweep").as_posix() for path in swept}
    assert found == {"off/steps-1_2", "published/steps-1_2"}


def test_grids_of_a_band_are_the_same_each_time_and_as_hard_as_is_said() -> None:
    rows = list(sudoku_9x9.documents(least=10, most=14, samples=3)["test"])
    assert rows == list(sudoku_9x9.documents(least=10, most=14, samples=3)["test"])
    assert rows != list(sudoku_9x9.documents(least=10, most=14, samples=3, seed=1)["test"])
    for row in rows:
        cells = row["input"].replace("\n", "")
        assert row["output"].replace("\n", "") == solution_of(cells)
        assert 10 <= row["guesses"] == difficulty(cells) <= 14
        assert held_out_digest("sudoku", row["input"]) not in read_held_out()
        assert sudoku_9x9.results(row, [row["output"]]) == {"solved": 1, "cells": 1}
        assert sudoku_9x9.results(row, [""]) == {"solved": 0, "cells": 0}
        assert sudoku_9x9.results(row, [row["input"]]) == {"solved": 0, "cells": 0}
    with pytest.raises(ValueError, match="samples must be at least 1, not -1"):
        sudoku_9x9.documents(samples=-1)


def test_the_error_of_grids_that_are_twins_counts_puzzles() -> None:
    rows = list(sudoku_9x9.documents(least=0, most=0, samples=40)["test"])
    assert 8 <= len({row["twin_of"] for row in rows}) <= 16
    # A solver that gets all or none of a puzzle's twins: two puzzles, of 20 grids each.
    samples = [
        {"filter": "none", "arguments": [], "resps": [], "solved": float(n < 20)}
        | {"doc_id": n, "doc": {"twin_of": n // 20}}
        for n in range(40)
    ]
    told = {"solved,none": 0.5, "solved_stderr,none": 0.08}
    (row,) = summarise({"results": {"t": told}, "samples": {"t": samples}}, Responses())
    assert row["stderr"] == pytest.approx(0.5)


def test_the_task_with_a_band_of_ones_own_that_the_reference_shows_runs(model, tmp_path) -> None:
    page = (ROOT / "docs" / "reference" / "evaluation-tasks.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"^```yaml\n(task: sudoku_9x9_mine\n.*?)^```$", page, re.DOTALL | re.M)
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "mine.yaml").write_text(shown, encoding="utf-8")
    asked = ("eval", "--tasks", "sudoku_9x9_mine", "--include-path", str(folder), "--limit", "1")
    more = ("--model", str(model), "--device", "cpu", "--max-new-tokens", "8")
    assert main([*asked, *more, "--out", str(tmp_path / "out")]) == 0
    assert result(tmp_path / "out")["summary"][0]["n"] == 1


def test_the_tasks_of_9x9_sudoku_are_its_bands() -> None:
    index = own_tasks().task_index
    bands = {
        name: tuple(index[name].cfg["dataset_kwargs"].get(bound) for bound in ("least", "most"))
        for name in index["sudoku_9x9"].cfg["task"]
    }
    assert list(bands.values()) == [(0, 0), (1, 9), (10, 19), (20, 39), (40, None)]
    assert all(name == f"sudoku_9x9_guesses_{least}" for name, (least, _) in bands.items())
