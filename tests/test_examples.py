"""The examples run: a rule with its test, a feedback rule, and the plot of both."""

from __future__ import annotations

import importlib
import json
import sys

import pytest
from paths import ROOT

from softmask.cli.main import main

EXAMPLES = ROOT / "examples"


@pytest.fixture(autouse=True)
def in_the_folder(monkeypatch):
    monkeypatch.chdir(EXAMPLES)
    monkeypatch.syspath_prepend(EXAMPLES)
    yield
    for name in ("steady", "test_steady", "eager", "plot_frontier"):
        sys.modules.pop(name, None)


def test_the_rule_has_twenty_lines_and_passes_its_test() -> None:
    lines = (EXAMPLES / "steady.py").read_text().splitlines()
    assert sum(bool(line.strip()) for line in lines) <= 20
    tests = importlib.import_module("test_steady")
    for name in [name for name in vars(tests) if name.startswith("test_")]:
        getattr(tests, name)()


def test_the_plot_shows_both_rules_beside_shipped_ones(tmp_path, capsys) -> None:
    plot = importlib.import_module("plot_frontier")
    target = tmp_path / "frontier.png"
    words = ["--puzzles", "1", "--kind", "sudoku_4x4_8", "--cells", "eighth,steady-1-0.5"]
    plot.main([*words, "--out", str(target)])
    out = capsys.readouterr().out
    assert all(word in out for word in ("eighth", "steady-1-0.5", "eager", "soft", "plain"))
    assert target.read_bytes().startswith(b"\x89PNG")


def test_the_readme_names_every_file_and_its_commands_work(capsys) -> None:
    text = (EXAMPLES / "README.md").read_text()
    assert all(path.name in text for path in EXAMPLES.glob("*.py"))
    short = ["--max-new-tokens", "8", "--seed", "0", "--device", "cpu", "--json"]
    for line in [line for line in text.splitlines() if line.startswith("softmask generate")]:
        words = line.split('"')[2].split()
        assert main(["generate", "One day, Tom", *words, *short]) == 0
        settings = json.loads(capsys.readouterr().out)["settings"]
        assert "steady" in str(settings) or settings["soft_mask"]["mode"] == "eager"
