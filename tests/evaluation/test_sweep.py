"""A sweep: points in folders, score against tokens per forward, areas and paired differences."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import write_dream_folder

from softmask.cli.main import main
from softmask.evaluation.config import model_args
from softmask.evaluation.parallelism import (
    Samples,
    accuracy_under_parallelism,
    area_of,
    read_samples,
)
from softmask.evaluation.sweep import chosen, paired_difference, points

NONE = {"steps": [], "threshold": [], "entropy_threshold": [], "feedback": ["off"]}


def test_the_area_is_the_published_one_on_published_points() -> None:
    # GSM8K-CoT of d3LLM's leaderboard: points, the best score of all, and the area by its code.
    best = 0.8394
    dparallel = accuracy_under_parallelism([(1.0, 0.838), (3.02, 0.8212)], best)
    assert dparallel == pytest.approx(245.733454, abs=1e-6)
    d3llm = accuracy_under_parallelism([(4.94, 0.8136), (1.0, 0.8347)], best)
    assert d3llm == pytest.approx(391.327796, abs=1e-6)
    # Scores below zero have an area too, if not a meaningful one.
    assert accuracy_under_parallelism([(1.0, -1.0), (2.0, -0.001)], -0.001) < 0
    # 6.5 points lower: that point does not count.
    assert accuracy_under_parallelism([(1.0, 0.838), (2.0, 0.7)], best) == pytest.approx(83.8)


@given(st.lists(st.tuples(st.floats(1, 20), st.floats(0, 1)), min_size=1, max_size=8))
def test_an_area_lies_between_its_first_rectangle_and_the_best_scores(curve) -> None:
    best = max(score for _, score in curve)
    area = accuracy_under_parallelism(curve, best)
    first = min(curve)
    assert 100 * first[0] * first[1] - 1e-6 <= area
    assert area <= 100 * max(x for x, _ in curve) * best + 1e-6


def test_points_are_every_value_under_every_feedback_and_soft_settings_are_not_of_off() -> None:
    args = model_args({"pretrained": "x", "mixinputs_k": 2})
    found = points(
        args,
        steps=[Fraction(1), Fraction(1, 4)],
        threshold=[0.9],
        entropy_threshold=[0.1],
        feedback=["off", "spherical", "off"],
    )
    assert [point.name for point in found] == [
        f"{feedback}/{way}"
        for feedback in ("off", "spherical")
        for way in ("steps-1", "steps-1_4", "threshold-0.9", "entropy-threshold-0.1")
    ]
    assert [point.args.mixinputs_k for point in found] == 4 * [None] + 4 * [2]
    assert found[1].args.nfe == 0.25
    assert (found[2].args.nfe, found[2].args.threshold) == (1.0, 0.9)


@pytest.mark.parametrize(
    ("given_args", "swept", "message"),
    [
        ({}, {}, "name what to sweep"),
        ({}, {"steps": [Fraction(2)]}, r"in \(0, 1\]"),
        ({}, {"threshold": [1.5]}, "threshold"),
        ({"nfe": 0.5}, {"steps": [Fraction(1)]}, "the sweep sets nfe itself"),
        ({"entropy_bound": 0.1}, {"threshold": [0.5]}, "threshold"),
        ({}, {"steps": [Fraction(1)], "feedback": ["on"]}, "feedback must be one of"),
    ],
)
def test_what_contradicts_itself_is_refused_before_anything_runs(
    given_args, swept, message
) -> None:
    with pytest.raises(ValueError, match=message):
        points(model_args(given_args), **(NONE | swept))


def samples(folder, documents, score=1.0):
    folder.mkdir()
    rows = [
        {"doc_id": i, "doc_hash": "h", "filter": "none", "metrics": ["m"], "m": score}
        | {"tokens": [4], "forwards": [2]}
        for i in documents
    ]
    (folder / "samples_t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_points_of_other_documents_are_not_paired(tmp_path) -> None:
    one, other = ([0, 1], [0, 2])
    a = read_samples(samples(tmp_path / "a", one), "t", "m", "none")
    b = read_samples(samples(tmp_path / "b", other), "t", "m", "none")
    with pytest.raises(ValueError, match="different documents"):
        paired_difference(a, b)


def test_points_of_one_document_have_a_difference_without_bounds(tmp_path) -> None:
    a = read_samples(samples(tmp_path / "a", [0], score=0.0), "t", "m", "none")
    b = read_samples(samples(tmp_path / "b", [0], score=1.0), "t", "m", "none")
    assert paired_difference(a, b) == {"difference": 1.0, "low": None, "high": None}
    assert area_of([a, b], [a, b])[1:] == (None, None)


def test_a_metric_of_the_whole_corpus_is_refused_by_its_name(tmp_path) -> None:
    folder = samples(tmp_path / "a", [0], score=["reference", "text"])
    with pytest.raises(ValueError, match="m is no number of a single document: choose another"):
        read_samples(folder, "t", "m", "none")


def words(model, data, out, *more: str) -> list[str]:
    return [
        *("eval", "sweep", "--tasks", "sudoku_4x4_4_plain", "--model", str(model)),
        *("--data-dir", str(data), "--out", str(out), "--device", "cpu", "--limit", "3"),
        *("--max-new-tokens", "8", "--steps", "1,1/4", "--batch-size", "3", *more),
    ]


@pytest.mark.long  # five evaluations
def test_a_sweep_runs_goes_on_and_takes_more_values(model, data, tmp_path, capsys, monkeypatch):
    out = tmp_path / "sweep"
    assert main(words(model, data, out)) == 0
    first = capsys.readouterr().out
    found = json.loads((out / "sweep.json").read_text())
    rows = {row["point"]: row for row in found["rows"]}
    assert list(rows) == [f"{f}/steps-{s}" for f in ("off", "published") for s in ("1", "1_4")]
    whole, quarter = rows["off/steps-1"], rows["off/steps-1_4"]
    assert whole["n"] == 3
    assert whole["tokens_per_forward"] == pytest.approx(whole["tokens"] / whole["forwards"])
    assert quarter["forwards"] <= 2 < whole["forwards"]
    assert len(found["pairs"]) == 6
    assert {curve["knob"] for curve in found["curves"]} == {"steps"}
    assert (out / "sweep.png").read_bytes().startswith(b"\x89PNG")
    run = json.loads((out / "published/steps-1_4/run.json").read_text())
    assert (run["soft_mask"]["mixinputs_k"], run["model_args"]["nfe"]) == (2, 0.25)
    # What is there is not run again: with one more value, one evaluation a feedback is.
    assert main(words(model, data, out, "--threshold", "0.5")) == 0
    reported = capsys.readouterr()
    assert reported.err.count("is finished already") == 4
    assert "threshold 0.5" in reported.out
    monkeypatch.setattr("softmask.evaluation.harness.SoftMaskLM._generate", None)
    assert main(words(model, data, out)) == 0
    assert capsys.readouterr().out == first
    # A report shows them all, and one sample's steps.
    page = tmp_path / "sweep.html"
    assert main(["eval", "report", str(out), "--out", str(page), "--trace"]) == 0
    assert page.read_text().count("One sample, step by step") == 1


def test_one_sample_has_no_error() -> None:
    one = Samples(np.array(["d"]), np.ones(1), np.full(1, 8.0), np.full(1, 4.0))
    assert (one.score, one.error, one.tokens_per_forward) == (1.0, None, 2.0)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--steps", "1,x"), "--steps takes numbers with commas between them, not '1,x'"),
        (("--feedback", "on"), "feedback must be one of"),
        (("--tasks", "choose", "--include-path", "."), "scores given texts (multiple_choice)"),
        (("--tasks", "several", "--include-path", "."), "choose scores given texts"),
        (("--model-args", "steps=4"), "the sweep sets diffusion_steps itself"),
    ],
)
def test_a_mistake_ends_in_one_sentence(
    model, data, tmp_path, monkeypatch, capsys, more, message
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("choose.yaml").write_text(
        "task: choose\ndataset_path: x\noutput_type: multiple_choice\n", encoding="utf-8"
    )
    Path("group.yaml").write_text("group: several\ntask: [choose]\n", encoding="utf-8")
    assert main(words(model, data, tmp_path / "s", *more)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


def test_a_metric_that_no_task_has_is_refused_after_the_first_point(
    model, data, tmp_path, capsys
) -> None:
    out = tmp_path / "s"
    assert main(words(model, data, out, "--metric", "solve", "--limit", "1")) == 2
    assert "has no metric solve; it has " in capsys.readouterr().err
    assert [path.parent.name for path in out.rglob("results.json")] == ["steps-1"]


def test_a_metric_that_is_no_share_is_refused() -> None:
    row = {"task": "t", "metric": "bleu", "filter": "none", "value": 23.5, "share": False}
    with pytest.raises(ValueError, match=r"bleu,none of t is no share of 1.*: bleu,none, acc,none"):
        chosen([row, row | {"metric": "acc", "share": True}], None)


def test_feedback_that_the_model_has_not_is_refused_before_the_first_point(
    data, tmp_path, capsys
) -> None:
    plain = write_dream_folder(tmp_path / "m")
    assert main(words(plain, data, tmp_path / "s")) == 2
    assert "no transparency_config.json" in capsys.readouterr().err
    assert not (tmp_path / "s").exists()
