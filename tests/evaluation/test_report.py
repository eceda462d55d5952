"""Finished evaluations as a page: what it says, that it is whole, and what it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from test_compare import write_run

from softmask.cli.main import main
from softmask.evaluation.report import read_runs, read_tasks
from softmask.evaluation.report_page import draw, scores_table
from softmask.evaluation.responses import request_key

NASTY = "</pre><script>alert(1)</script> {{ 7 * 7 }} | & % $ _ \\"


def add_answers(folder, *, soft: bool) -> None:
    """Texts, answers and a record, as `softmask eval` leaves them."""
    lines, answers = [], []
    for i, line in enumerate((folder / "samples_t.jsonl").read_text().splitlines()):
        sample = json.loads(line)
        arguments = [f"question {i}", {"until": []}]
        sample |= {
            "arguments": [arguments],
            "resps": [[NASTY if i == 0 else f"answer {i}"]],
            "filtered_resps": ["[invalid]" if i == 2 else "x"],
            "target": "x",
            "forwards": [4],
            "tokens": [8],
        }
        lines.append(json.dumps(sample) + "\n")
        answers.append(
            {
                "key": request_key(arguments),
                "text": sample["resps"][0][0],
                "finish_reason": "length" if i == 3 else "stop",
                "forwards": 4,
                "tokens": 8,
            }
        )
    (folder / "samples_t.jsonl").write_text("".join(lines))
    (folder / "responses.0.jsonl").write_text("".join(json.dumps(a) + "\n" for a in answers))
    record = {
        "command": ["softmask", "eval", "--tasks", "t"],
        "commit": "0123456789abcdef",
        "model": {"name": "<small>", "fingerprint": "f" * 64},
        "soft_mask": {"transparency_alg": "topk"} if soft else None,
        "model_args": {"nfe": 0.5, "seed": 0},
        "packages": {"torch": "2.13.0"},
    }
    (folder / "run.json").write_text(json.dumps(record))
    results = json.loads((folder / "results.json").read_text())
    results["summary"][0]["tokens_per_forward"] = 4.0 if soft else 2.0
    (folder / "results.json").write_text(json.dumps(results))


@pytest.fixture
def suite(tmp_path):
    for mode, scores in (("plain", [1, 0, 0, 0]), ("soft", [1, 1, 0, 0])):
        add_answers(write_run(tmp_path / "suite" / mode, scores), soft=mode == "soft")
    return tmp_path / "suite"


def test_answers_come_out_right_or_as_a_kind_of_failure(suite) -> None:
    (task,) = read_tasks(read_runs([suite]))
    assert [(run.name, dict(kinds)) for run, kinds in task.kinds] == [
        ("plain", {"right": 1, "wrong": 1, "no answer found": 1, "cut off at its length": 1}),
        ("soft", {"right": 2, "no answer found": 1, "cut off at its length": 1}),
    ]
    assert [sample.number for sample in task.samples] == [0, 1, 2, 3]
    assert [answer.run for answer in task.samples[1].answers] == ["plain", "soft"]
    assert [answer.kind for answer in task.samples[1].answers] == ["wrong", "right"]


def change_samples(folder, **values):
    path = folder / "samples_t.jsonl"
    rows = [json.loads(line) | values for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_right_is_what_the_main_score_says_and_not_an_easier_one(suite) -> None:
    # As of HumanEval+, whose older tests are fewer, and of a problem that cannot be judged.
    change_samples(suite / "plain", metrics=["solved", "easier"], solved=0.0, easier=1.0)
    change_samples(suite / "soft", metrics=["skipped"], skipped=1.0)
    (task,) = read_tasks(read_runs([suite]))
    assert [(run.name, dict(kinds)) for run, kinds in task.kinds] == [
        ("plain", {"wrong": 2, "no answer found": 1, "cut off at its length": 1}),
        ("soft", {"not judged": 4}),
    ]


def test_a_score_that_is_no_share_makes_no_answer_right(suite) -> None:
    for folder in (suite / "plain", suite / "soft"):
        change_samples(folder, solved=1.5, filtered_resps=["x"])
        path = folder / "results.json"
        found = json.loads(path.read_text())
        found["summary"][0] |= {"value": 1.5, "share": False}  # as BLEU, of 0 to 100
        path.write_text(json.dumps(found))
    (task,) = read_tasks(read_runs([suite]))
    assert dict(task.kinds[0][1]) == {"scored": 3, "cut off at its length": 1}


def test_the_question_of_a_hole_is_what_stands_on_both_sides(suite) -> None:
    for folder in (suite / "plain", suite / "soft"):
        change_samples(folder, arguments=[["before ", {"suffix": " behind"}]])
    (task,) = read_tasks(read_runs([suite]))
    assert task.samples[0].question == "before [...] behind"


def test_settings_of_another_version_are_not_traced(suite, tmp_path, capsys) -> None:
    path = suite / "soft/run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_args": {"of_later": 1}}))
    words = ["eval", "report", str(suite), "--out", str(tmp_path / "r.html"), "--trace"]
    assert main(words) == 2
    assert "was evaluated by another version" in capsys.readouterr().err


@pytest.mark.parametrize(
    "part",
    [
        *({"model": "small"}, {"adapter": ["a"]}, {"soft_mask": 1}, {"packages": ["torch"]}),
        *({"environment": "linux"}, {"command": [1]}, {"model_args": "nfe=1"}, {"dtype": 32}),
    ],
    ids=lambda part: next(iter(part)),
)
def test_a_record_with_a_part_of_another_type_is_one_sentence(
    suite, tmp_path, capsys, part
) -> None:
    path = suite / "plain/run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | part))
    out = tmp_path / "r.html"
    assert main(["eval", "report", str(suite), "--out", str(out)]) == 2
    (name,) = part
    error = capsys.readouterr().err
    assert f"run.json is no record of an evaluation ({name} is of another type)" in error
    assert error.count("\n") == 1
    assert not out.exists()


def test_a_suite_with_both_names_of_the_plain_mode_shows_both(suite) -> None:
    add_answers(write_run(suite / "binary", [0, 0, 0, 0]), soft=False)
    found = {run.name: run.rows[0]["value"] for run in read_runs([suite])}
    assert found == {"binary": 0.0, "plain": 0.25, "soft": 0.5}


def test_a_score_below_one_that_is_no_share_is_no_per_cent(suite) -> None:
    for name, share in (("plain", False), ("soft", True)):
        path = suite / name / "results.json"
        results = json.loads(path.read_text())
        results["summary"][0]["share"] = share
        path.write_text(json.dumps(results))
    shown = {row[0]: row[3] for row in scores_table(read_tasks(read_runs([suite]))).rows}
    assert shown == {"plain": "0.25", "soft": "50.0 ± 10.0"}


def test_runs_of_folders_with_one_name_are_told_apart(suite, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "b").mkdir()
    (suite / "soft").rename(tmp_path / "b/plain")
    found = read_runs([Path("suite/plain"), Path("b/plain"), suite / "plain"])
    assert [run.name for run in found] == ["suite/plain", "b/plain"]
    monkeypatch.chdir(suite / "plain")
    assert [run.name for run in read_runs([Path()])] == ["plain"]


def test_samples_are_spread_over_a_task(tmp_path) -> None:
    add_answers(write_run(tmp_path / "run", [1, 0, 0, 0, 0]), soft=False)
    (task,) = read_tasks(read_runs([tmp_path]), samples=3)
    assert [sample.number for sample in task.samples] == [0, 1, 3]


def test_texts_of_the_reports_name_are_not_overwritten(suite, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("report.tex").write_text("a thesis", encoding="utf-8")
    assert main(["eval", "report", "suite"]) == 2
    assert "report.tex would be overwritten" in capsys.readouterr().err
    assert Path("report.tex").read_text(encoding="utf-8") == "a thesis"
    assert not Path("report.html").exists()


def test_a_line_that_is_no_sample_is_named(suite, tmp_path, capsys) -> None:
    path = suite / "plain/samples_t.jsonl"
    path.write_text(path.read_text() + '{"filter": "none"}\n')
    assert main(["eval", "report", str(suite), "--out", str(tmp_path / "r.html")]) == 2
    assert "samples_t.jsonl, line 5, is no sample" in capsys.readouterr().err


def test_a_score_that_is_no_share_is_drawn_as_it_is(suite) -> None:
    for folder in (suite / "plain", suite / "soft"):
        results = json.loads((folder / "results.json").read_text())
        results["summary"][0]["value"] = 25.3
        (folder / "results.json").write_text(json.dumps(results))
    (task,) = read_tasks(read_runs([suite]))
    drawn = draw(task)
    assert drawn is not None
    assert "plain: 25.3 at 2.00" in drawn[1]


def test_the_report_is_one_page_and_tables_beside_it(suite, tmp_path, capsys) -> None:
    out = tmp_path / "r.html"
    assert main(["eval", "report", str(suite), "--out", str(out), "--samples", "2"]) == 0
    page = out.read_text()
    # Nothing is fetched, and what a model wrote is text.
    addresses = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert addresses
    assert all(a.startswith(("#", "data:image/svg+xml;base64,")) for a in addresses)
    assert "<script" not in page
    assert "{{ 7 * 7 }}" in page
    assert "25.0 ± 10.0" in page
    assert "&lt;small&gt; (ffffffffffff)" in page
    assert page.count('class="sample"') == 2
    assert 'alt="t, score against tokens per forward. plain: 25.0 % at 2.00' in page
    assert (
        "| plain | t | solved | 25.0 ± 10.0 | 4 | 8.0 | 2.00 |" in (tmp_path / "r.md").read_text()
    )
    tex = (tmp_path / "r.tex").read_text()
    assert r"plain & t & solved & 25.0 $\pm$ 10.0 & 4 & 8.0 & 2.00 \\" in tex
    assert r"Scores in \% " in tex
    again = tmp_path / "again.html"
    assert main(["eval", "report", str(suite), "--out", str(again), "--samples", "2"]) == 0
    assert again.read_text() == page


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["empty"], "holds no finished evaluation"),
        (["suite", "--out", "report.pdf"], "must end in .html"),
        (["suite", "--out", "none/report.html"], "there is no folder for"),
        (["suite", "--samples", "0"], "--samples must be at least 1"),
    ],
)
def test_a_report_of_nothing_or_nowhere_is_refused(
    suite, tmp_path, monkeypatch, capsys, words, message
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert main(["eval", "report", *words]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("report.*"))
