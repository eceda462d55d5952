"""softmask eval calibration, as a user types it."""

from __future__ import annotations

import json

import pytest

from softmask.cli.main import main

TEXT = "on and on and then there was nothing more to be said about the other one " * 6


def command(model, *words: str) -> list[str]:
    return ["eval", "calibration", "--model", str(model), "--device", "cpu", *words]


def test_puzzles_are_read_decoded_and_kept_with_their_plot(model, tmp_path, capsys) -> None:
    out = tmp_path / "calibration"
    words = command(model, "--puzzles", "sudoku_9x9", "--count", "2", "--givens", "40")
    words += ["--passes", "3", "--steps", "4", "--out", str(out), "--json"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert all(len(line) <= 80 for line in said.splitlines()[:-2])
    found = json.loads(said.splitlines()[-1])
    assert json.loads((out / "results.json").read_text()) == found
    assert found["masks"] == 2 * 41
    assert found["verdict"].split()[:3] == ["Read", "once,", "without"]
    assert len(found["ways"]["on"]["passes"]) == 3
    assert len(found["ways"]["off"]["passes"]) == 1
    assert len(found["ways"]["on"]["decoding"]["by_step"]) == 4
    kept = (out / "samples_calibration.jsonl").read_text()
    rows = [json.loads(line) for line in kept.splitlines()]
    assert [sum(row["on"]["commits"]) for row in rows] == [41, 41]
    wrong = sum(sum(row["on"]["wrong"]) for row in rows)
    assert found["ways"]["on"]["decoding"]["wrong"]["value"] == pytest.approx(wrong / 82)
    assert (out / "calibration.png").read_bytes().startswith(b"\x89PNG")
    # Once finished it is shown; another one is not written over it.
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == found
    assert main([*words, "--no-soft-mask"]) == 2
    assert "holds an evaluation with another soft_mask" in capsys.readouterr().err


def test_a_text_of_ones_own_is_read_without_feedback_too(model, tmp_path, capsys) -> None:
    data, out = tmp_path / "held.txt", tmp_path / "calibration"
    data.write_text(TEXT)
    words = command(model, "--texts", str(data), "--length", "16", "--share", "0.4", "--limit", "3")
    assert main([*words, "--nfe", "0.5", "--no-soft-mask", "--out", str(out)]) == 0
    assert "Of what decoding commits" in " ".join(capsys.readouterr().out.split())
    found = json.loads((out / "results.json").read_text())
    assert (found["texts"], found["masks"]) == (3, 3 * 6)
    assert list(found["ways"]) == ["off"]
    assert found["ways"]["off"]["decoding"]["forwards"]["value"] == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give --puzzles sudoku_9x9 or --texts FILE"),
        (["--puzzles", "sudoku_9x9", "--texts", "a.txt"], "give --puzzles sudoku_9x9 or --texts"),
        (["--texts", "no.txt"], "there is no file no.txt"),
        (["--texts", "no.txt", "--givens", "30"], "--givens goes with --puzzles"),
        (["--puzzles", "sudoku_9x9", "--share", "0.3"], "--share goes with --texts"),
        (["--puzzles", "sudoku_9x9", "--count", "0"], "--count must be at least 1"),
        (["--puzzles", "sudoku_9x9", "--passes", "0"], "passes must be at least 1"),
        (["--puzzles", "sudoku_9x9", "--givens", "9"], "28 to 80"),
    ],
)
def test_bad_input_is_one_sentence(model, tmp_path, words, message, capsys) -> None:
    assert main(command(model, *words, "--out", str(tmp_path / "out"))) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("softmask: error: ")
    assert message in error
    assert not (tmp_path / "out" / "results.json").exists()
