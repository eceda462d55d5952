"""Two evaluations side by side: paired differences, their intervals, and the plot."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from softmask.cli.main import main
from softmask.evaluation import intervals
from softmask.evaluation.compare import compare, draw, runs_in, table_of
from softmask.evaluation.intervals import interval
from softmask.evaluation.parallelism import read_samples


def write_run(folder: Path, scores: list[float], *, forwards: float = 8.0, task="t") -> Path:
    """An evaluation as `softmask eval` leaves it."""
    folder.mkdir(parents=True)
    samples = [
        {
            "doc_id": i,
            "doc_hash": f"h{i}",
            "filter": "none",
            "metrics": ["solved"],
            "solved": score,
        }
        for i, score in enumerate(scores)
    ]
    lines = [json.dumps(sample) + "\n" for sample in samples]
    (folder / f"samples_{task}.jsonl").write_text("".join(lines))
    row = {
        "task": task,
        "metric": "solved",
        "filter": "none",
        "value": sum(scores) / len(scores),
        "stderr": 0.1,
        "n": len(scores),
        "forwards": forwards,
        "tokens": 5.0,
    }
    (folder / "results.json").write_text(json.dumps({"summary": [row]}))
    (folder / "run.json").write_text("{}")
    return folder


def test_a_difference_is_paired_by_sample(tmp_path) -> None:
    a = write_run(tmp_path / "a", [1, 1, 0, 0] * 25)
    b = write_run(tmp_path / "b", [1, 0, 1, 1] * 25, forwards=4.0)
    (found,) = compare(a, b)
    assert (found.a, found.b, found.difference, found.n) == (0.5, 0.75, 0.25, 100)
    assert (found.only_a, found.only_b) == (25, 50)
    assert (found.forwards_a, found.forwards_b) == (8.0, 4.0)
    assert 0 < found.low < 0.25 < found.high < 0.5


def test_what_other_commands_keep_beside_evaluations_is_none(tmp_path) -> None:
    write_run(tmp_path / "evals/a", [1.0])
    for name in ("ppl", "samples", "calibration"):
        (tmp_path / "evals" / name).mkdir()
        (tmp_path / "evals" / name / "results.json").write_text("{}")
        (tmp_path / "evals" / name / "run.json").write_text(json.dumps({name: {}}))
    assert list(runs_in(tmp_path / "evals")) == ["a"]


def test_what_both_get_right_is_no_noise(tmp_path) -> None:
    rng = np.random.default_rng(0)
    hard = (rng.random(400) < 0.5).astype(float)
    a = write_run(tmp_path / "a", hard.tolist())
    b = write_run(tmp_path / "b", np.maximum(hard, rng.random(400) < 0.04).tolist())
    (found,) = compare(a, b)
    # Unpaired, the error of the difference would be 0.035; paired, 4 % is clearly above 0.
    assert found.low > 0
    assert found.high - found.low < 0.04


@given(
    values=st.lists(st.sampled_from([-1.0, 0.0, 1.0]), min_size=2, max_size=60),
    seed=st.integers(0, 5),
)
def test_the_interval_holds_the_mean_and_is_the_same_again(values, seed) -> None:
    differences = np.array(values)
    low, high = interval(differences, seed)
    assert low - 1e-9 <= differences.mean() <= high + 1e-9 or len(values) < 4
    assert (low, high) == interval(differences, seed)


def test_the_interval_is_as_wide_as_the_normal_one() -> None:
    differences = np.random.default_rng(1).normal(0.2, 1.0, 500)
    low, high = interval(differences)
    half = 1.96 * differences.std(ddof=1) / np.sqrt(500)
    assert high - low == pytest.approx(2 * half, rel=0.06)


@pytest.mark.parametrize(
    ("a", "b", "significant"),
    [
        ([0, 0, 0], [1, 1, 1], False),
        ([0] * 5 + [1] * 95, [1] * 100, False),
        ([0] * 6 + [1] * 94, [1] * 100, True),
        ([0.5, 0.25], [0.75, 0.75], False),
        ([0.5, 0.5], [0.75, 0.75], False),
    ],
)
def test_a_difference_is_significant_where_an_exact_test_says_so_too(
    tmp_path, a, b, significant
) -> None:
    (found,) = compare(write_run(tmp_path / "a", a), write_run(tmp_path / "b", b))
    assert found.significant is significant
    assert found.low <= found.difference <= found.high


@pytest.mark.parametrize("count", [2, 3, 5, 8, 20])
def test_of_equally_good_models_one_comparison_in_twenty_is_called_significant(
    count, monkeypatch
) -> None:
    monkeypatch.setattr(intervals, "RESAMPLES", 100)
    rng = np.random.default_rng(0)
    graded = rng.normal(size=(200, count))
    judged = np.where(rng.random((200, count)) < 0.6, rng.choice([-1.0, 1.0], (200, count)), 0.0)
    for drawn in (graded, judged):
        found = [interval(differences) for differences in drawn]
        assert np.mean([low > 0 or high < 0 for low, high in found]) < 0.08


def test_one_sample_has_no_interval_and_is_never_significant(tmp_path, capsys) -> None:
    a, b = write_run(tmp_path / "a", [0]), write_run(tmp_path / "b", [1])
    assert main(["eval", "compare", str(a), str(b), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (found["difference"], found["low"], found["high"]) == (1.0, None, None)
    assert found["significant"] is False


def test_what_one_side_has_not_finished_is_named(tmp_path, capsys) -> None:
    for side in ("plain", "soft"):
        for cell in ("t@1_1", "t@1_2"):
            write_run(tmp_path / side / cell, [0, 1])
    (tmp_path / "soft/t@1_2/results.json").unlink()
    assert main(["eval", "compare", str(tmp_path / "plain"), str(tmp_path / "soft")]) == 0
    said = capsys.readouterr().out
    assert f"{tmp_path / 'soft'} has no finished evaluation t@1_2: left out." in said


def test_folders_of_evaluations_are_compared_place_by_place(tmp_path) -> None:
    for name, scores in (("plain", [0, 0, 1]), ("soft", [0, 1, 1])):
        write_run(tmp_path / name / "t@1_1", scores)
        write_run(tmp_path / name / "t@1_2", scores, forwards=4.0)
    found = compare(tmp_path / "plain", tmp_path / "soft")
    assert [d.place for d in found] == ["t@1_1", "t@1_2"]
    target = tmp_path / "plot.png"
    draw(tmp_path / "plain", tmp_path / "soft", target)
    assert target.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_a_place_with_several_tasks_names_them(tmp_path, capsys) -> None:
    for name in ("a", "b"):
        folder = write_run(tmp_path / name / "own", [0, 1])
        both = write_run(tmp_path / name / "spare", [0, 1], task="u")
        (both / "samples_u.jsonl").rename(folder / "samples_u.jsonl")
        shutil.rmtree(both)
    Console(width=80).print(table_of(compare(tmp_path / "a", tmp_path / "b")))
    rows = [line.split()[:2] for line in capsys.readouterr().out.splitlines()]
    assert ["own", "t"] in rows
    assert ["own", "u"] in rows


@pytest.mark.parametrize(("columns", "last"), [(80, "forwards"), (60, "%")])
def test_a_suites_cells_are_told_apart_in_a_terminal_of_few_columns(
    tmp_path, capsys, columns, last
) -> None:
    for name in ("a", "b"):
        for fraction in ("1_1", "1_4"):
            task = "countdown_cd3_plain"
            write_run(tmp_path / name / f"{task}@{fraction}", [0, 1, 1], task=task)
    found = compare(tmp_path / "a", tmp_path / "b")
    Console(width=columns).print(table_of(found, columns))
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.count("countdown_cd3_plain") == 2
    assert "@" not in shown
    assert "1/4" in shown
    assert f" {last} " in shown


def test_a_suite_from_before_plain_was_its_name_is_compared_with_one_of_today(tmp_path) -> None:
    write_run(tmp_path / "old" / "binary" / "t@1_1", [0, 0, 1])
    write_run(tmp_path / "new" / "plain" / "t@1_1", [0, 1, 1])
    (found,) = compare(tmp_path / "old", tmp_path / "new")
    assert found.place == "plain/t@1_1"
    assert found.only_b == 1


def test_different_documents_are_not_compared(tmp_path) -> None:
    a, b = write_run(tmp_path / "a", [1, 0]), write_run(tmp_path / "b", [1, 0, 1])
    with pytest.raises(ValueError, match="scored different documents of t"):
        compare(a, b)


def test_a_sample_that_one_was_left_out_of_a_metric_is_no_other_document(tmp_path) -> None:
    """As a problem of BigCodeBench that one of two machines cannot judge."""
    a, b = (write_run(tmp_path / name, [1.0, 0.0, 1.0, 0.0]) for name in "ab")
    for folder, skipped in ((a, {0}), (b, {0, 3})):
        path = folder / "samples_t.jsonl"
        samples = [json.loads(line) for line in path.read_text().splitlines()]
        for i in skipped:
            samples[i] |= {"metrics": ["skipped"], "skipped": 1.0}
        path.write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    found = {one.metric: one.n for one in compare(a, b)}
    assert found == {"solved": 2, "skipped": 1}


def test_a_length_that_a_sample_does_not_have_is_no_score_of_it(tmp_path) -> None:
    """RULER's tasks write -1 there, which counts neither in means nor as wrong."""
    for name, scores in (("a", [0.0, 1.0]), ("b", [1.0, 1.0])):
        folder = write_run(tmp_path / name, [*scores, -1.0, -1.0])
        path = folder / "samples_t.jsonl"
        text = path.read_text().replace("solved", "4096")
        lines = [json.loads(x) | {"tokens": [2], "forwards": [1]} for x in text.splitlines()]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (found,) = compare(tmp_path / "a", tmp_path / "b")
    assert (found.n, found.a, found.b, found.difference) == (2, 0.5, 1.0, 0.5)
    assert read_samples(tmp_path / "a", "t", "4096", "none").score == 0.5


def test_what_has_nothing_in_common_is_an_error(tmp_path) -> None:
    a = write_run(tmp_path / "a", [1])
    write_run(tmp_path / "b" / "deeper", [1])
    with pytest.raises(ValueError, match="no evaluation in common"):
        compare(a, tmp_path / "b")
    c = write_run(tmp_path / "c", [1], task="u")
    with pytest.raises(ValueError, match="no metric in common"):
        compare(a, c)


def test_an_unfinished_evaluation_does_not_count(tmp_path) -> None:
    write_run(tmp_path / "all" / "done", [1])
    half = write_run(tmp_path / "all" / "half", [1])
    (half / "results.json").unlink()
    assert list(runs_in(tmp_path / "all")) == ["done"]
    with pytest.raises(ValueError, match="holds no finished evaluation"):
        runs_in(half)


def test_the_command_prints_a_table_and_json_and_draws(tmp_path, capsys) -> None:
    a, b = write_run(tmp_path / "a", [1, 0] * 9), write_run(tmp_path / "b", [1, 1] * 9)
    plot = tmp_path / "p.png"
    assert main(["eval", "compare", str(a), str(b), "--plot", str(plot), "--json"]) == 0
    *table, last = capsys.readouterr().out.splitlines()
    assert any("+0.500" in line for line in table)
    assert json.loads(last)[0]["difference"] == 0.5
    assert plot.is_file()
    assert main(["eval", "compare", str(a), str(tmp_path / "none")]) == 2
    assert "holds no finished evaluation" in capsys.readouterr().err
