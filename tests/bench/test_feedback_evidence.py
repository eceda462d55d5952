"""The experiment on trained feedback: its rule of success, its equal seconds, and all at once."""

from __future__ import annotations

import json
import random
import re
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


@pytest.mark.parametrize(("full", "said"), [(0.80, "surely less"), (0.60, "NOT surely less")])
def test_where_arms_need_not_win_it_is_said_whether_they_lose_little(full, said) -> None:
    from report import sentences
    from rule import not_worse

    found = not_worse(tables(full, 0.70, 1), tables(0.75, 0.65, 3), 0.03)
    (verdict,) = sentences({"carry": found}, [], 0.03)
    assert verdict == f"carry: loses {said} than 3 points"


def test_an_arm_with_the_rows_of_plain_training_needs_no_control() -> None:
    from rule import conditions

    own, off, plain = tables(0.92, 0.88, 1), tables(0.75, 0.65, 2), tables(0.80, 0.70, 3)
    found = conditions(own, off, plain, None, 2.5)
    assert len(found) == 4
    assert all(one.holds for one in found)


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
    from arms import BARS, KNOWN, ROWS_OF_PLAIN, RULE, WAYS
    from common import chosen_arms, colours

    by_name = {arm.name: arm for arm in KNOWN}
    assert len({*colours(KNOWN).values()}) == len(KNOWN)
    assert len(by_name) == len(KNOWN)
    assert all(need in by_name for arm in KNOWN for need in arm.needs)
    assert len(chosen_arms("plain,buffer,carry,carry-k1", KNOWN)) == 4
    assert by_name["buffer"].settings == by_name["carry"].settings
    assert (by_name["buffer"].is_soft, by_name["carry"].is_soft) == (False, True)
    assert set(BARS) == {"carry", "unrolled", *ROWS_OF_PLAIN}
    later = set(by_name["carry-random"].settings) - set(by_name["buffer-random"].settings)
    assert later == {"soft_mask.weight=entropy", "soft_mask.scale=0.9"}
    assert RULE.modes == ("own", "off")
    assert all(name in by_name for group in WAYS for name in group.arms)


def test_where_arms_need_not_win_a_loss_has_to_be_surely_below_the_margin() -> None:
    from rule import not_worse

    plain = tables(0.18, 0.10, 1)
    (level,) = not_worse(tables(0.18, 0.10, 2), plain, 0.1)
    (lost,) = not_worse(tables(0.10, 0.02, 2), plain, 0.05)
    assert level.holds
    assert not lost.holds


def test_a_way_is_chosen_on_puzzles_of_its_own_and_scored_by_importance(
    tmp_path, monkeypatch
) -> None:
    import run

    work = tmp_path / "work"
    for name in ("test", "choice"):
        (work / "puzzles" / name).mkdir(parents=True)
        (work / "puzzles" / name / "sudoku_hard.jsonl").write_text("{}\n" * 8)
    made: list[tuple[str, str, str]] = []

    def fake(chains, workers) -> None:
        for (task,) in chains:
            words = dict(zip(task.command, task.command[1:], strict=False))
            modes, data = words["--modes"], words["--data"].rsplit("/", 1)[1]
            made.append((task.product.parent.name, modes, f"{data} {words['--first']}"))
            task.product.parent.mkdir(parents=True, exist_ok=True)
            best = {"tokens-2": "11", "both-1.5": "11"}  # as good: the first is taken
            cells = [{"mode": m, "solved": best.get(m, "10")} for m in modes.split(",")]
            task.product.write_text(json.dumps({"cells": cells}))

    monkeypatch.setattr(run, "run_chains", fake)
    command = [str(tmp_path / "out"), "--work", str(work), "--seeds", "1"]
    for stage in ("test", "choose", "ways"):
        run.main([*command, "--stage", stage])
    assert made[0] == ("plain-seed1", "own", "test 8")
    assert ("carry-seed1", "own,off", "test 8") in made[:8]
    assert made[8] == ("carry-seed1", ",".join(run.CHOICES), "choice 8")
    assert made[9] == ("carry-seed1", "tokens-2", "test 8")
    assert ("two-pass-seed1", "shuffled", "test 2") in made
    assert len(set(made[9:])) == len(made[9:])


@pytest.mark.slow
def test_the_report_says_who_succeeds_and_shows_each_arm_against_its_control(
    tmp_path, capsys
) -> None:
    from run import main

    solved = {
        "plain": (0.80, 0.70),
        "two-pass": (0.60, 0.50),
        "buffer": (0.80, 0.70),
        "carry": (0.92, 0.88),
    }
    for number, (arm, chances) in enumerate(solved.items()):
        is_soft = arm in ("two-pass", "carry")
        modes = {"own": chances, **({"off": solved["plain"]} if is_soft else {})}
        for seed in (1, 2, 3):
            folder = tmp_path / "out" / "work" / f"{arm}-seed{seed}"
            folder.mkdir(parents=True)
            cells = [
                cell(mode, fewer, table[seed - 1])
                for mode, of in modes.items()
                for fewer, table in tables(*of, 100 * number + len(mode)).items()
            ]
            (folder / "own.json").write_text(json.dumps({"soft_mask": None, "cells": cells}))
            learned = {"lambda": 0.3, "scale": 0.5, "offset": -1.0, "steepness": 2.0}
            lines = [
                {"step": step, "seconds": 1.0 * step, "nats": 1.0, **(learned if is_soft else {})}
                for step in (20, 40)
            ]
            (folder / "log.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    main([str(tmp_path / "out"), "--stage", "report"])
    said = capsys.readouterr().out
    assert "carry: SUCCEEDS" in said
    assert "unrolled: no verdict" in said
    assert "not run: plain-updates, unrolled" in said
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    rows = {(row["arm"], row["mode"]): row for row in result["numbers"]}
    assert len(rows["carry", "own"]["by_seed"]["full"]) == 3
    assert rows["two-pass", "own"]["mean_minus_plain"]["mean"] == pytest.approx(-0.2, abs=0.05)
    table = (tmp_path / "out" / "table.txt").read_text()
    assert re.search(r"5 buffer, carry +4 buffer, no carry +\+", table)
    for name in ("accuracy.png", "wrong_commits.png", "parameters.png"):
        assert (tmp_path / "out" / name).is_file()


def cell(mode: str, fewer: str, row: list[float]) -> dict[str, object]:
    """As score_puzzles.py writes one."""
    steps = 51 if fewer == "full" else 13
    return {
        "puzzles": "sudoku_hard",
        "mode": mode,
        "fewer": fewer,
        "solved": "".join(str(int(one)) for one in row),
        "forwards": float(steps),
        "seconds": 1.0,
        "committed": [240] * steps,
        "wrong": list(range(steps)),
    }


@pytest.mark.slow
def test_the_experiment_runs_from_nothing_to_its_verdict_and_not_twice(tmp_path) -> None:
    sizes = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1}
    settings = [
        *(f"model.shape.{name}={size}" for name, size in sizes.items()),
        *("train.steps=8", "train.optimizer=adamw"),
        *("corpus.puzzle_batch=16", "train.log_every=4", "train.eval_batches=1"),
    ]
    out = tmp_path / "out"
    command = [sys.executable, FEEDBACK / "run.py", out, "--seconds", "0.5", "--share", "0.02"]
    command += ["--dtype", "float32"]
    # Each run is a process of its own: few arms, and one seed.
    command += ["--seeds", "1", "--arms", "plain,two-pass,buffer,carry"]
    command += [*(word for s in settings for word in ("--more", s))]

    def run(*words: str) -> str:
        done = subprocess.run([*map(str, command), *words], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    for stage in ("time", "train", "test", "choose", "ways"):
        run("--stage", stage)
    for stage in ("time", "train", "ways"):
        assert "done" not in run("--stage", stage)
    timing = json.loads((out / "work" / "timing.json").read_text())
    assert len(timing["rounds"]) == 3
    said = run("--stage", "report")
    assert "carry: " in said
    assert "unrolled: no verdict" in said
    result = json.loads((out / "result.json").read_text())
    assert result["not_run"] == []
    assert set(result["rule"]) == {"carry", "two-pass"}
    modes = {(row["arm"], row["mode"]) for row in result["numbers"]}
    assert {("plain", "own"), ("carry", "off"), ("two-pass", "shuffled")} <= modes
    for cells in result["raw"]["carry"]:
        for cell in cells["cells"]:
            # 51 blanks a puzzle are committed, and what is wrong was not solved.
            assert sum(cell["committed"]) == 51 * len(cell["solved"])
            assert (sum(cell["wrong"]) == 0) == ("0" not in cell["solved"])
    for name in ("accuracy.png", "wrong_commits.png", "parameters.png", "table.txt"):
        assert (out / name).is_file()


def test_two_ways_are_compared_on_each_set_of_puzzles_and_on_all_together(tmp_path) -> None:
    from compare import main

    rng = random.Random(3)
    for arm, mode, chance in (("plain", "own", 0.5), ("carry-random", "half", 0.9)):
        for seed in (7, 8):
            for suffix in ("", "-second"):
                cells = [
                    {
                        "mode": mode,
                        "fewer": fewer,
                        "solved": "".join(str(int(rng.random() < chance)) for _ in range(40)),
                    }
                    for fewer in ("full", "1/4")
                ]
                file = tmp_path / "work" / f"{arm}-seed{seed}" / f"{mode}{suffix}.json"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(json.dumps({"cells": cells}))
    ways = ["--first", "carry-random:half", "--second", "plain:own"]
    more = ["--work", str(tmp_path / "work"), "--seeds", "7-8", "--puzzles", "test,second"]
    main([str(tmp_path / "out"), *ways, *more])
    numbers = json.loads((tmp_path / "out" / "result.json").read_text())["numbers"]
    means = {name: one["mean"]["mean"] for name, one in numbers.items()}
    assert [one["puzzles"] for one in numbers.values()] == [40, 40, 80]
    assert means["all"] == pytest.approx((means["test"] + means["second"]) / 2)
    assert means["all"] == pytest.approx(0.4, abs=0.1)
    assert sum(numbers["all"]["by_seed"]) / 2 == pytest.approx(means["all"])
    with pytest.raises(ValueError, match="plain:off of seed 7 was not scored on test"):
        main([str(tmp_path / "other"), *ways[:2], "--second", "plain:off", *more[:4]])
