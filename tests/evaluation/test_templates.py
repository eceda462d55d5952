"""A task under several templates: the prompts, the spread of the score, what compare makes of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_compare import write_run
from test_report import add_answers
from tiny import write_dream_folder

from softmask.cli.main import main
from softmask.config import read_json
from softmask.decoding.chat_template import render_chat
from softmask.evaluation import spread
from softmask.evaluation.compare import compare
from softmask.evaluation.templates import SHIPPED, read_templates

CHAT = [
    {"role": "user", "content": "1+1?"},
    {"role": "assistant", "content": "2"},
    {"role": "user", "content": "2+2?"},
]


class Plain:
    """What rendering needs of a tokenizer."""

    chat_template = None
    special_tokens_map: dict[str, str] = {}  # noqa: RUF012


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("question", "Question: 1+1?\nAnswer: 2\n\nQuestion: 2+2?\nAnswer:"),
        (
            "alpaca",
            "Below is an instruction that describes a task. Write a response that appropriately "
            "completes the request.\n\n### Instruction:\n1+1?\n\n### Response:\n2\n\n"
            "### Instruction:\n2+2?\n\n### Response:\n",
        ),
    ],
)
def test_a_template_that_ships_writes_examples_and_leaves_the_answer_open(name, text) -> None:
    def made(messages, **options):
        return render_chat(Plain(), messages, template=SHIPPED[name].jinja, **options)

    assert made(CHAT, add_generation_prompt=True) == text
    told = made([{"role": "system", "content": "Be kind."}, *CHAT], add_generation_prompt=True)
    assert told == "Be kind.\n\n" + text[text.index("Question" if name == "question" else "###") :]
    # With a beginning of the answer, which goes on behind it.
    begun = [*CHAT, {"role": "assistant", "content": "It is"}]
    assert made(begun, continue_final_message=True) == text.rstrip() + {"question": " It is"}.get(
        name, "\nIt is"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("raw,chatml", "there is no template 'chatml': name some of raw, own, assistant"),
        ("raw", "raw is one template: a spread needs at least two"),
        ("raw,all", "two templates have the name raw"),
        ("raw,none.yaml", "there is no file none.yaml with a template"),
        ("raw,broken.jinja", "template broken: the chat template is broken"),
        ("raw,key.yaml", "key.yaml: one: unknown setting"),
        ("raw,list.yaml", "list.yaml must be a mapping of templates"),
        ("raw,text.yaml", "text.yaml is no YAML"),
        ("raw,name.yaml", "a template's name has letters, digits"),
    ],
)
def test_templates_that_are_none_are_refused(tmp_path, monkeypatch, words, message) -> None:
    monkeypatch.chdir(tmp_path)
    Path("broken.jinja").write_text("{% for m in messages %}")
    Path("key.yaml").write_text("one: {chats: own}")
    Path("list.yaml").write_text("[own]")
    Path("text.yaml").write_text("{own")
    Path("name.yaml").write_text("../up: {}")
    with pytest.raises(ValueError, match=message):
        read_templates(words)


def words(model, data, out, *more: str, templates: str = "raw,own,question") -> list[str]:
    return [
        *("eval", "--tasks", "sudoku_4x4_4_plain", "--model", str(model), "--templates", templates),
        *("--data-dir", str(data), "--out", str(out), "--device", "cpu", "--limit", "3"),
        *("--max-new-tokens", "8", "--steps", "2", "--batch-size", "3", *more),
    ]


def test_a_task_runs_under_each_template_and_goes_on(model, data, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("own.yaml").write_text("kind: {chat: own, system: Be kind., until: ['4']}")
    out = tmp_path / "t"
    run = words(model, data, out, templates="raw,own,question,own.yaml")
    # Stopped in the second evaluation, and so without a result.
    with monkeypatch.context() as patch:
        patch.setattr("softmask.evaluation.templates.Template.name", "x", raising=False)
    assert main(run) == 0
    first = capsys.readouterr().out
    prompts = {}
    for name in ("raw", "own", "question", "kind"):
        lines = (out / name / "samples_sudoku_4x4_4_plain.jsonl").read_text().splitlines()
        prompts[name] = json.loads(lines[0])["arguments"][0][0]
        settings = read_json(out / name / "run.json")["evaluation"]
        assert settings["template"] == name
    raw = prompts["raw"]
    assert prompts["question"] == f"Question: {raw}\nAnswer:"
    assert raw in prompts["own"]
    assert "Be kind." in prompts["kind"]
    assert read_json(out / "question/run.json")["evaluation"]["chat_template"] == (
        SHIPPED["question"].chat
    )
    (found,) = [one for one in spread.read(out) if one.main]
    assert list(found.scores) == ["raw", "own", "question", "kind"]
    assert "standard deviation" in first
    # What is there is not run again.
    monkeypatch.setattr("softmask.evaluation.harness.SoftMaskLM._generate", None)
    assert main(run) == 0
    again = capsys.readouterr()
    assert again.out == first
    assert again.err.count("is finished already") == 4
