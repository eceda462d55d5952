"""The experiment on presets of feedback: what a way is, and what its rule says."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import random
import sys
from types import ModuleType

import pytest
from paths import ROOT

from softmask.config import FEEDBACK_PRESETS, SoftMaskConfig

EVIDENCE = ROOT / "benchmarks" / "evidence"
OWN = SoftMaskConfig(k=3, scale=0.4)
# Solved in each way: what the rule has to find.
CHANCES = {"off": 0.6, "spherical": 0.2, "rcd": 0.6, "published": 0.9}
SAID = {"spherical": "harms", "rcd": "not told apart", "published": "helps"}


@pytest.fixture
def experiment(monkeypatch) -> ModuleType:
    """Its script, under a name of its own: every experiment's is called run.py."""
    monkeypatch.syspath_prepend(str(EVIDENCE))
    monkeypatch.syspath_prepend(str(EVIDENCE / "feedback"))
    spec = importlib.util.spec_from_file_location("presets_run", EVIDENCE / "presets" / "run.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "presets_run", module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", FEEDBACK_PRESETS)
def test_a_preset_of_a_score_is_that_of_the_command_line(monkeypatch, name) -> None:
    monkeypatch.syspath_prepend(str(EVIDENCE))
    from score_puzzles import way_of

    preset = FEEDBACK_PRESETS[name]
    assert way_of(f"preset-{name}", OWN).soft == (OWN if preset is True else preset)


def test_spherical_is_scored_at_any_lambda_with_or_without_parameters_of_ones_own(
    monkeypatch,
) -> None:
    monkeypatch.syspath_prepend(str(EVIDENCE))
    from score_puzzles import way_of

    weaker = dataclasses.replace(FEEDBACK_PRESETS["spherical"], scale=0.1)
    assert way_of("spherical-0.1", OWN).soft == way_of("spherical-0.1", None).soft == weaker


def test_every_way_is_judged_against_the_same_weights_without_feedback(
    experiment, tmp_path
) -> None:
    plain, work, rng = [tmp_path / name for name in "abc"], tmp_path / "work", random.Random(5)
    for arm in experiment.arms_of(plain):
        for name in arm.sets:
            for model in range(len(arm.models)):
                for preset, chance in ((one, CHANCES[one]) for one in arm.presets):
                    file = experiment.folder_of(work, arm, model, name) / f"{preset}.json"
                    file.parent.mkdir(parents=True, exist_ok=True)
                    cells = [
                        {
                            "fewer": fewer,
                            "solved": "".join(str(int(rng.random() < chance)) for _ in range(200)),
                            "forwards": forwards,
                        }
                        for fewer, forwards in (("full", 51.0), ("1/4", 13.0))
                    ]
                    file.write_text(json.dumps({"cells": cells}))
    words = ["--plain", *map(str, plain), "--work", str(work), "--count", "2"]
    experiment.main([str(tmp_path / "out"), *words])  # all scores are there: none is made
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    found = {(row["model"], row["puzzles"], row["feedback"]): row for row in result["rows"]}
    assert len(found) == 3 * 4 + 3
    for (_, _, feedback), row in found.items():
        if feedback == "off":
            continue
        assert row["verdict"] == SAID[feedback]
        expected = CHANCES[feedback] - CHANCES["off"]
        assert row["mean_minus_off"]["mean"] == pytest.approx(expected, abs=0.1)
    raw = {(one["model"], one["puzzles"], one["feedback"]): one for one in result["raw"]}
    assert [len(rows) for rows in raw["plain", "sudoku_9x9", "rcd"]["solved"].values()] == [3, 3]
    assert "plain, sudoku_9x9" in (tmp_path / "out" / "table.txt").read_text()
    puzzles = (work / "puzzles" / "sudoku_9x9" / "sudoku_9x9.jsonl").read_text().splitlines()
    assert [json.loads(line)["input"].count("0") for line in puzzles] == [51, 51]
