"""Whatever is typed: an answer, or one sentence and exit code 2. Seeded; marked slow."""

from __future__ import annotations

import itertools
import json
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny import write_dora_adapter, write_dream_folder

from softmask.cli.main import main

VALUES = [
    *("", " ", "-1", "0", "1", "2", "0.5", "1e309", "nan", "-inf", "9" * 5000, "1e-320", "0x10"),
    *("\udc80", "\u00e9" * 300, "a" * 5000, "/", "/dev/full", "/nonexistent/x", ".", "~nosuch/x"),
    *("[[", "[[0]]", "[[999999]]", "{}", "null", "true", "meta", "cuda:99", "cpu:7", "auto", "%s"),
    *("--", "-", "1_000", "\u0661", "int4", "dual", "entropy", "temperature", "..", "file.json"),
    *("dream", "adapter", "run.json", "texts.txt", "a/b", "a/b/c", "[" * 5000, "1e39", "-1e39"),
]
# Commands that end by themselves within a moment, with options that make them small.
LINES = [
    "generate --model dream Hi --max-new-tokens 4 --seed 1",
    "generate --model dream Hi --max-new-tokens 4 --temperature 0.8 --top-p 0.9 --top-k 3 -n 2",
    "generate --model dream --adapter adapter Hi --max-new-tokens 4 --json --steps 2",
    "generate --model dream --infill a[[3]]b --soft-mask-scale 0.5 --soft-mask-k 2 --stream",
    "generate --model dream Hi --max-new-tokens 4 --html out.html --svg out.svg --trace out.json",
    "generate --model dream --file texts.txt --max-new-tokens 8 --block-length 4 --cache dual",
    "generate --model dream Hi --max-new-tokens 4 --threshold 0.9 --device cpu --dtype float32",
    "export --model dream --adapter adapter out",
    "export --model dream out --dtype bfloat16 --overwrite",
    "view run.json --out page.html",
    "eval ppl --model dream --data texts.txt --times 2 --length 8",
    "eval compare dream adapter",
    "train recipe.yaml --out run",
    "train default --out run --set x=1",
    "push adapter --to a/b --dry-run",
    "chat --model dream",
    "serve --model dream --port 0",
    "bench --model dream --max-new-tokens 4 --repeats 1",
    "demo --puzzles 1 --kinds countdown_3",
    "lm_eval --model nosuch",
]
# What these begin would go on for long: their lines are broken for certain.
ENDLESS = ("serve", "bench", "demo", "train default")
RECIPES = ["", "{}", "[", "a: 1", "mode: finetune\nmodel: dream\n", "&a [*a]", "x: " + "9" * 5000]


def broken(rng: random.Random, line: str) -> list[str]:
    """The words of a line with one to three mistakes."""
    command, *words = line.split()
    endless = line.startswith(ENDLESS)
    for _ in range(rng.randint(1, 3)):
        place = rng.randrange(len(words) + 1)
        match rng.randrange(5):
            case 0 if words:
                del words[min(place, len(words) - 1)]
            case 1:
                words.insert(place, rng.choice(VALUES))
            case 2 if words:
                words[min(place, len(words) - 1)] = rng.choice(VALUES)
            case 3 if words:
                words.insert(place, rng.choice(words))
            case _:
                words.insert(place, rng.choice(["--stepz", "--seed", "--json", "-n", "--help"]))
    if endless:
        words.append("--no-such-option")
    return [command, *words]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Iterator[Path]:
    base = write_dream_folder(tmp_path / "dream")
    write_dora_adapter(tmp_path / "adapter", base)
    (tmp_path / "texts.txt").write_text("One day, Tom went home.\n\nIt was late.\n")
    (tmp_path / "file.json").write_text(json.dumps({"a": [1, None]}))
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "recipe.yaml").write_text(random.Random(1).choice(RECIPES))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with open(os.devnull, encoding="utf-8") as empty:
        monkeypatch.setattr(sys, "stdin", empty)
        yield tmp_path


@pytest.mark.slow
def test_a_thousand_broken_command_lines_end_in_an_answer_or_a_sentence(folder, capsys) -> None:
    rng, codes = random.Random(20), []
    for number, line in zip(range(1000), itertools.cycle(LINES), strict=False):
        words = broken(rng, line)
        (folder / "recipe.yaml").write_text(rng.choice(RECIPES))
        try:
            code = main(words)
        except SystemExit as exit:
            code = exit.code
        except BaseException as error:
            raise AssertionError(f"line {number}: {words}") from error
        said = capsys.readouterr().err.rstrip("\n")
        assert code in (0, 2), (words, said)
        if code == 2:
            assert "error: " in said.splitlines()[-1], (words, said)
            assert "Traceback" not in said, (words, said)
        codes.append(code)
    assert codes.count(0) > 50
    assert codes.count(2) > 500
