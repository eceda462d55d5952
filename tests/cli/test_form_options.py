"""softmask generate with a form: the options, and what they refuse."""

from __future__ import annotations

import json
import os
import re
import subprocess

import pytest

from softmask.cli.main import main

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


@pytest.fixture
def written(tmp_path):
    # As some editors begin a file.
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA), encoding="utf-8-sig")
    (tmp_path / "g.gbnf").write_text('root ::= "<" [a-c]+ ">"', encoding="utf-8-sig")
    return tmp_path


def test_an_answer_keeps_to_each_of_the_forms(model, written, capsys) -> None:
    forms = {
        "--regex [0-9]{3}": lambda text: re.fullmatch("[0-9]{3}", text),
        f"--json-schema {written}/schema.json": lambda text: isinstance(json.loads(text)["n"], int),
        "--json-object": lambda text: isinstance(json.loads(text), dict),
        "--choice yes --choice no": lambda text: text in ("yes", "no"),
        f"--grammar {written}/g.gbnf": lambda text: re.fullmatch("<[a-c]+>", text),
    }
    for words, is_of_form in forms.items():
        argv = f"generate Hi --model {model} --max-new-tokens 30 --temperature 1 {words}".split()
        assert main(argv) == 0
        text = capsys.readouterr().out.strip()
        assert is_of_form(text), (words, text)


def test_a_recorded_run_has_its_form_too(model, written, capsys) -> None:
    argv = ["generate", "x = [[4]];", "--infill", "--model", str(model), "--regex", "[0-9]+"]
    assert main([*argv, "--trace", str(written / "t.json")]) == 0
    assert re.fullmatch("x = [0-9]{4};", capsys.readouterr().out.strip())


def test_an_empty_pattern_is_the_form_of_an_empty_text(model, capsys) -> None:
    assert main(["generate", "Hi", "--model", str(model), "--regex", ""]) == 0
    assert capsys.readouterr().out.strip() == ""


def test_a_schema_may_come_through_a_pipe(model, tmp_path, capsys) -> None:
    pipe = tmp_path / "schema"
    os.mkfifo(pipe)
    with subprocess.Popen(["sh", "-c", f"echo '{json.dumps(SCHEMA)}' > {pipe}"]):
        words = ["generate", "Hi", "--model", str(model), "--json-schema", str(pipe)]
        assert main([*words, "--max-new-tokens", "30"]) == 0
    assert isinstance(json.loads(capsys.readouterr().out)["n"], int)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--regex", "a", "--json-object"], "--regex and --json-object each say"),
        (["--regex", "(a"], "regex"),
        (["--regex", "", "--json-object"], "--regex and --json-object each say"),
        (["--json-schema", "nowhere.json"], "there is no file nowhere.json"),
        (["--regex", "a{40}", "--max-new-tokens", "9"], "has 40 tokens, but there is room for 9"),
    ],
)
def test_what_cannot_be_promised_is_refused(model, capsys, words, reason) -> None:
    assert main(["generate", "Hi", "--model", str(model), *words]) == 2
    assert reason in capsys.readouterr().err
