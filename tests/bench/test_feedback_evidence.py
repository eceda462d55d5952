"""The experiment on trained feedback: its rule of success, its equal seconds, and all at once."""

from __future__ import annotations

import json
import random
import subprocess
import sys

import pytest
from paths import ROOT

EVIDENCE = ROOT / "benchmarks" / "evidence"
FEEDBACK = EVIDENCE / "feedback"


@pytest.fixture(autouse=True)
def beside_the_scripts(monkeypatch) -> None:
    """They are scripts: what they import lies beside them."""
    monkeypatch.syspath_prepend(str(EVIDENCE))
    monkeypatch.syspath_prepend(str(FEEDBACK))


def tables(full: float, quarter: float, seed: int) -> dict[str, list[list[float]]]:
    """Three seeds, 240 puzzles, solved with these chances."""
    rng = random.Random(seed)
    return {
        name: [[float(rng.random() < chance) for _ in range(240)] for _ in range(3)]
        for name, chance in (("full", full), ("1/4", quarter))
    }


@pytest.mark.parametrize(
    ("full", "quarter", "off", "control", "misses"),
    [
        (0.92, 0.88, (0.75, 0.65), (0.80, 0.70), []),
        (0.80, 0.70, (0.5, 0.5), (0.5, 0.5), ["minus plain, mean of all forwards"]),
        (0.70, 1.0, (0.5, 0.5), (0.5, 0.5), ["minus plain, full"]),
        (0.92, 0.88, (0.92, 0.88), (0.80, 0.70), ["on minus off"]),
        (0.92, 0.88, (0.75, 0.65), (0.92, 0.88), ["minus buffer without carry"]),
    ],
)
def test_an_arm_succeeds_only_if_every_condition_of_the_rule_holds(
    full, quarter, off, control, misses
) -> None:
    from rule import conditions

    found = conditions(
        own=tables(full, quarter, 1),
        off=tables(*off, 2),
        plain=tables(0.80, 0.70, 3),
        control=tables(*control, 4),
        bar=2.5,
    )
    assert [one.what for one in found if not one.holds] == misses


def test_a_gain_is_paired_and_its_size_in_errors_is_finite_only_where_something_varies() -> None:
    from common import Estimate
    from rule import gain, in_errors

    plain = {"full": [[1.0, 0.0], [1.0, 0.0]], "1/4": [[0.0, 0.0], [0.0, 0.0]]}
    more = {"full": [[1.0, 1.0], [1.0, 1.0]], "1/4": [[1.0, 0.0], [1.0, 0.0]]}
    found = gain(more, plain)
    # Half a puzzle more of every puzzle and seed: nothing varies.
    assert (found.mean, found.error) == (0.5, 0.0)
    assert in_errors(found) == float("inf")
    assert in_errors(gain(plain, plain)) == 0
    assert in_errors(Estimate(-0.2, 0.1)) == pytest.approx(-2)


def test_an_arm_is_timed_against_the_reference_of_its_own_round() -> None:
    from run import seconds_by_arm

    rounds = [
        {"seconds": {"plain": 1.0, "carry": 1.2}},
        {"seconds": {"plain": 2.0, "carry": 2.4}},  # the machine was busy
        {"seconds": {"plain": 1.0, "carry": 1.5}},
        # A later arm has rounds of its own, whatever the machine does by then.
        *({"seconds": {"plain": 4.0, "unrolled": 8.0}} for _ in range(3)),
    ]
    assert seconds_by_arm(rounds) == pytest.approx({"plain": 1.0, "carry": 1.2, "unrolled": 2.0})


def test_every_arm_differs_from_its_control_in_what_the_experiment_says() -> None:
    from arms import ABLATIONS, ARMS, BARS, RULE, WAYS
    from common import chosen_arms

    known = (*ARMS, *ABLATIONS)
    by_name = {arm.name: arm for arm in known}
    assert len(by_name) == len(known)
    assert all(need in by_name for arm in known for need in arm.needs)
    assert len(chosen_arms("plain,buffer,carry,carry-k1", known)) == 4
    assert by_name["buffer"].settings == by_name["carry"].settings
    assert (by_name["buffer"].is_soft, by_name["carry"].is_soft) == (False, True)
    assert set(BARS) == {"carry", "unrolled"}
    assert RULE.modes == ("own", "off")
    assert all(name in by_name for group in WAYS for name in group.arms)


def test_where_arms_need_not_win_a_loss_has_to_be_surely_below_the_margin() -> None:
    from rule import not_worse

    plain = tables(0.18, 0.10, 1)
    (level,) = not_worse(tables(0.18, 0.10, 2), plain, 0.1)
    (lost,) = not_worse(tables(0.10, 0.02, 2), plain, 0.05)
    assert level.holds
    assert not lost.holds


@pytest.mark.slow
def test_the_experiment_runs_from_nothing_to_its_verdict_and_not_twice(tmp_path) -> None:
    sizes = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1}
    settings = [
        *(f"model.shape.{name}={size}" for name, size in sizes.items()),
        *("train.steps=8", "train.precision=float32", "train.optimizer=adamw"),
        *("corpus.puzzle_batch=16", "train.log_every=4", "train.eval_batches=1"),
    ]
    out = tmp_path / "out"
    command = [sys.executable, FEEDBACK / "run.py", out, "--seconds", "0.5", "--share", "0.02"]
    command += ["--seeds", "1,2", *(word for s in settings for word in ("--more", s))]

    def run(*words: str) -> str:
        done = subprocess.run([*map(str, command), *words], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    # Stage by stage, each again: what is done stays as it is.
    for stage in ("time", "train", "test", "choose", "ways"):
        run("--stage", stage)
        assert "done" not in run("--stage", stage)
    timing = json.loads((out / "work" / "timing.json").read_text())
    assert len(timing["rounds"]) == 3
    said = run("--stage", "report")
    assert "carry: " in said
    assert "unrolled: " in said
    result = json.loads((out / "result.json").read_text())
    assert result["not_run"] == []
    assert set(result["rule"]) >= {"carry", "unrolled"}
    modes = {(row["arm"], row["mode"]) for row in result["numbers"]}
    assert {("plain", "own"), ("carry", "off"), ("two-pass", "shuffled")} <= modes
    for cells in result["raw"]["carry"]:
        for cell in cells["cells"]:
            # 51 blanks a puzzle are committed, and what is wrong was not solved.
            assert sum(cell["committed"]) == 51 * len(cell["solved"])
            assert (sum(cell["wrong"]) == 0) == ("0" not in cell["solved"])
    for name in ("accuracy.png", "wrong_commits.png", "parameters.png", "table.txt"):
        assert (out / name).is_file()
