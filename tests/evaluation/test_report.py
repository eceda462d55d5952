"""Finished evaluations as a page: what it says, that it is whole, and what it refuses."""

from __future__ import annotations

import json
import re

import pytest
from test_compare import write_run

from softmask.cli.main import main
from softmask.evaluation.report import read_runs, read_tasks
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
