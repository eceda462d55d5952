"""What a terminal is told under a text, and that pipes are told nothing."""

from __future__ import annotations

import re
import sys

import pytest
from tiny import write_dream_folder, write_json

from softmask.cli.closing_line import print_text
from softmask.cli.main import main
from softmask.reporting.words import wrapped


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    folder = write_dream_folder(tmp_path_factory.mktemp("cli") / "dream")
    write_json(folder / "sampling_config.json", {"temperature": 0.9, "top_p": 0.95})
    return str(folder)


@pytest.fixture
def shown(folder, capsys, monkeypatch):
    """A text and the lines under it, in a terminal without the live view."""

    def generate(*options: str) -> tuple[str, str]:
        for stream in (sys.stdout, sys.stderr):
            monkeypatch.setattr(stream, "isatty", lambda: True)
        words = ["--model", folder, "Hi", "--max-new-tokens", "6", "--no-live"]
        assert main(["generate", *words, *options]) == 0
        captured = capsys.readouterr()
        return captured.out, re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", captured.err)

    return generate


def test_the_seed_that_is_told_writes_the_text_again(shown, tmp_path) -> None:
    text, told = shown("--soft-mask-scale", "0.5", "--block-length", "3")
    seed = re.search(r"seed (\d+), drawn at random; --seed \1 writes this again", told)
    assert seed is not None
    # One drawn text in 50 ends within a block, which saves the forwards that follow.
    assert re.search(r"\d tokens?, [1-6] forwards, \d+\.\d s .*, mean lambda 0\.\d\d", told)
    assert "loading" in told
    lines = " ".join(told.split())
    assert "from the checkpoint: temperature 0.9, top_p 0.95; from you: block_length 3" in lines
    again = ["--soft-mask-scale", "0.5", "--block-length", "3", "--seed", seed[1]]
    assert shown(*again)[0] == text
    page = tmp_path / "page.html"
    recorded, told = shown(*again, "--html", str(page))
    assert recorded == text
    assert f"written: {page}" in told.replace("\n", "")
    assert "drawn" not in told


def test_several_texts_are_told_of_together(shown) -> None:
    _, told = shown("-n", "3", "--seed", "5", "--json")
    assert "6 forwards" in told
    assert "seeds 5 to 7" in told


def test_quiet_and_a_pipe_are_told_nothing(shown, folder, capsys) -> None:
    assert shown("--quiet", "--temperature", "0")[1] == ""
    assert "seed" not in shown("--temperature", "0")[1]  # nothing was drawn


def test_an_error_is_wrapped_at_words_in_a_terminal_and_its_command_stays_whole(
    capsys, monkeypatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    words = ["train", "--data", "x.jsonl", "--prompt-column", "a"]
    assert main(words) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    with monkeypatch.context() as patched:
        patched.setattr(sys.stderr, "isatty", lambda: True)
        assert main(words) == 2
    lines = capsys.readouterr().err.splitlines()
    lines = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", one).strip() for one in lines]
    lines = lines[next(i for i, one in enumerate(lines) if "error" in one) :]
    assert len(lines) > 1
    assert all(len(one) <= 40 for one in lines)
    assert " ".join(lines) == line.strip()
    command = "`softmask train --data chats.jsonl --iters 300`"
    assert wrapped(f"it is finished: {command}, or not", 40).splitlines() == [
        "it is finished:",
        f"{command},",
        "or not",
    ]


def test_a_terminal_wraps_at_words_and_a_pipe_does_not(capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    text = "one two three four five\n    six seven eight nine\n"
    print_text(text)
    assert capsys.readouterr().out == f"{text}\n"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    print_text(text)
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines[:4] == ["one two three four", "five", "    six seven eight", "nine"]
