"""A task under several templates: prompts, the spread of the score, what compare makes of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console
from test_compare import write_run
from test_report import add_answers
from tiny import write_dream_folder

from softmask.cli.main import main
from softmask.config import read_json
from softmask.decoding.chat_template import render_chat
from softmask.evaluation import spread
from softmask.evaluation.compare import compare, refusals
from softmask.evaluation.config import EvalConfig
from softmask.evaluation.harness import SoftMaskLM
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
            "Do what the instruction asks, and nothing else.\n\n"
            "### Instruction:\n1+1?\n\n### Response:\n2\n\n"
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
        *("--max-new-tokens", "8", "--steps", "2", "--batch-size", "2", *more),
    ]


def test_a_task_runs_under_each_template_and_goes_on_where_it_was_stopped(
    model, data, tmp_path, capsys, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("kind.yaml").write_text("kind: {chat: own, system: Be kind., until: [zz]}")
    out = tmp_path / "t"
    run = words(model, data, out, templates="raw,own,question,kind.yaml")
    generate, calls = SoftMaskLM._generate, []

    def stopped(self, batch):
        calls.append(batch)
        if len(calls) == 4:  # the last batch of the second evaluation
            raise KeyboardInterrupt
        return generate(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(SoftMaskLM, "_generate", stopped)
        assert main(run) == 130
    assert [path.parent.name for path in out.rglob("results.json")] == ["raw"]
    assert not (out / spread.RESULT).exists()
    capsys.readouterr()

    assert main(run) == 0
    first = capsys.readouterr()
    assert first.err.count("is finished already") == 1
    assert read_json(out / "own/run.json")["answers_from_before"] == 2
    prompts, told = {}, {}
    for name in ("raw", "own", "question", "kind"):
        lines = (out / name / "samples_sudoku_4x4_4_plain.jsonl").read_text().splitlines()
        prompts[name] = json.loads(lines[0])["arguments"][0][0]
        told[name] = read_json(out / name / "run.json")["evaluation"]
    raw = prompts["raw"]
    assert prompts["question"] == f"Question: {raw}\nAnswer:"
    assert raw in prompts["own"]
    assert "Be kind." in prompts["kind"]
    assert [one["template"] for one in told.values()] == list(told)
    assert told["question"]["chat_template"] == SHIPPED["question"].chat
    assert (told["own"]["apply_chat_template"], told["own"]["chat_template"]) == (True, None)
    assert (told["kind"]["system_instruction"], told["kind"]["until"]) == ("Be kind.", ["zz"])
    (found,) = [one for one in spread.read(out) if one.main]
    assert list(found.scores) == list(told)
    assert "standard deviation" in first.out

    # What is there is not run again.
    monkeypatch.setattr(SoftMaskLM, "_generate", None)
    assert main(run) == 0
    again = capsys.readouterr()
    assert again.out == first.out
    assert again.err.count("is finished already") == 4


@pytest.mark.parametrize(
    ("templates", "more", "message"),
    [
        ("raw,own", ["--apply-chat-template"], "--templates and --apply-chat-template contradict"),
        ("raw,own", ["--system-instruction", "x"], "--templates and --system-instruction contra"),
        ("raw,mute.jinja", [], "template mute leaves out the prompt"),
        ("raw,deaf.yaml", [], "template deaf leaves out the system message"),
        ("question,same.jinja", [], "templates question and same make the same prompts for"),
        ("raw,strict.jinja", [], "template strict: the model's chat template refuses"),
    ],
)
def test_what_a_template_leaves_out_is_found_before_anything_is_evaluated(
    model, data, tmp_path, monkeypatch, capsys, templates, more, message
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mute.jinja").write_text("Say something.")
    loop = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    Path("deaf.yaml").write_text(f'deaf: {{chat: "{loop}", system: Be kind.}}')
    Path("same.jinja").write_text(SHIPPED["question"].chat)
    Path("strict.jinja").write_text("{{ raise_exception('no') }}")
    assert main(words(model, data, tmp_path / "t", *more, templates=templates)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.splitlines()[-1].startswith("softmask: error: ")
    assert not (tmp_path / "t").exists()


def suite_words(model, data, out, *more: str) -> list[str]:
    return [
        *("eval", "suite", "puzzles", "--model", str(model), "--data-dir", str(data)),
        *("--out", str(out), "--tasks", "sudoku_4x4_4_plain", "--fractions", "1/2"),
        *("--limit", "2", "--device", "cpu", "--max-new-tokens", "8", *more),
    ]


def test_a_suite_runs_each_cell_under_each_template_and_compares_them(
    model, data, tmp_path, capsys, monkeypatch
) -> None:
    out = tmp_path / "s"
    assert main(suite_words(model, data, out, "--templates", "raw,own")) == 0
    printed = capsys.readouterr()
    cell = "sudoku_4x4_4_plain@1_2"
    written = {str(path.parent.relative_to(out)) for path in out.rglob("results.json")}
    assert written == {f"{m}/{cell}/{name}" for m in ("plain", "soft") for name in ("raw", "own")}
    assert "over 2 chat templates" in " ".join(printed.out.split())
    rows = [line.split() for line in printed.out.splitlines()]
    for mode in ("plain", "soft"):
        (found,) = [one for one in spread.read(out / mode / cell) if one.main]
        shown = [found.shown(v) for v in (found.mean, found.deviation, found.range, found.error)]
        assert ["sudoku_4x4_4_plain", "1/2", mode, *shown] in rows
    places = {(d.place, d.spread is None) for d in compare(out / "plain", out / "soft")}
    assert places == {(f"{cell}/raw", False), (f"{cell}/own", False)}
    assert main(["eval", "report", str(out), "--out", str(tmp_path / "r.html")]) == 0
    named = [line.split(" | ")[0] for line in (tmp_path / "r.md").read_text().splitlines()]
    assert named.count(f"| plain/{cell}") == named.count(f"| soft/{cell}") == 1

    monkeypatch.setattr(SoftMaskLM, "_generate", None)
    capsys.readouterr()
    assert main(suite_words(model, data, out, "--templates", "raw,own")) == 0
    assert capsys.readouterr().out == printed.out


def test_evaluations_of_one_prompt_and_of_several_do_not_share_a_folder(
    model, data, tmp_path, capsys
) -> None:
    out, one = tmp_path / "s", ("--modes", "plain")
    assert main(suite_words(model, data, out, *one)) == 0
    assert main(suite_words(model, data, out, *one, "--templates", "raw,own")) == 2
    assert "holds an evaluation without --templates: name another" in capsys.readouterr().err
    assert len(list(out.rglob("results.json"))) == 1


def test_a_templates_system_message_stands_in_place_of_a_suites() -> None:
    told = EvalConfig(tasks=("aime24",), system_instruction="Box the answer.")
    found = {name: SHIPPED[name].of(told).system_instruction for name in ("own", "steps")}
    assert found == {"own": "Box the answer.", "steps": SHIPPED["steps"].system}


def test_templates_and_published_scores_contradict_each_other(tmp_path, capsys) -> None:
    command = ["eval", "suite", "dream", "--against", "published", "--templates", "raw,own"]
    assert main([*command, "--out", str(tmp_path / "s")]) == 2
    assert "the published scores are of the suite's own prompts" in capsys.readouterr().err


def test_a_sweep_is_of_one_prompt(tmp_path, capsys) -> None:
    command = ["eval", "sweep", "--tasks", "sudoku_4x4_4_plain", "--steps", "1", "--templates"]
    assert main([*command, "all", "--out", str(tmp_path / "s")]) == 2
    assert "a sweep is of one prompt: give --templates to" in capsys.readouterr().err


def test_a_model_without_a_chat_template_has_none_of_its_own(data, tmp_path, capsys) -> None:
    base = write_dream_folder(tmp_path / "base")
    assert main(words(base, data, tmp_path / "t", templates="raw,own,steps")) == 2
    assert "base has no chat template: leave out own, steps" in capsys.readouterr().err
    assert not (tmp_path / "t").exists()


def several(folder: Path, right: dict[str, int]) -> Path:
    """The result of --templates where so many of 20 samples are right under each template."""
    for name, count in right.items():
        add_answers(write_run(folder / name, [1] * count + [0] * (20 - count)), soft=False)
    spread.write(folder, spread.spreads_of({name: folder / name for name in right}))
    return folder


def test_a_spread_is_of_scores_over_templates(tmp_path, capsys) -> None:
    (found,) = spread.read(several(tmp_path / "a", {"raw": 4, "own": 8, "steps": 12}))
    assert found.scores == {"raw": 0.2, "own": 0.4, "steps": 0.6}
    assert (found.mean, found.deviation, found.range, found.error) == pytest.approx(
        (0.4, 0.2, 0.4, 0.1)
    )
    (table,) = spread.tables_of([found])
    Console(width=70).print(table)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["own", "40.0", "10.0"] in rows
    assert ["mean", "40.0", "10.0"] in rows
    assert ["standard", "deviation", "20.0"] in rows
    assert ["range", "40.0"] in rows


def test_a_difference_below_the_spread_is_not_called_significant(tmp_path, capsys) -> None:
    a = several(tmp_path / "a", {"raw": 4, "own": 6})
    b = several(tmp_path / "b", {"raw": 10, "own": 20})
    found = {d.place: d for d in compare(a, b)}
    # Its interval leaves out zero, and it is below the larger deviation, that of B.
    assert found["raw"].low > 0
    assert found["raw"].spread == pytest.approx(0.5 / 2**0.5)
    assert (found["raw"].significant, found["own"].significant) == (False, True)
    (sentence,) = refusals(compare(a, b))
    assert sentence.startswith("raw, solved: B - A (+0.300) is smaller")
    assert main(["eval", "compare", str(a / "raw"), str(b / "raw"), "--json"]) == 0
    said, last = capsys.readouterr().out.splitlines()[-2:]
    assert said == (
        "t, solved: B - A (+0.300) is smaller than the spread over chat templates (0.354, a "
        "standard deviation), so it is not called significant."
    )
    assert json.loads(last)[0]["significant"] is False
    # The spread is made of the difference of two templates; it says nothing against that.
    assert main(["eval", "compare", str(b / "raw"), str(b / "own"), "--json"]) == 0
    printed = capsys.readouterr().out
    assert "significant" not in printed.replace('"significant": true', "")


def test_an_evaluation_without_templates_has_the_spread_of_the_other_side(tmp_path) -> None:
    a = write_run(tmp_path / "one", [0] * 20)
    b = several(tmp_path / "b", {"raw": 8, "own": 20})
    (found,) = compare(a, b / "raw")
    assert (found.low > 0, found.significant) == (True, False)


def test_a_report_shows_the_spread(tmp_path) -> None:
    folder = several(tmp_path / "a", {"raw": 4, "own": 8, "steps": 12})
    assert main(["eval", "report", str(folder), "--out", str(tmp_path / "r.html")]) == 0
    assert "Over chat templates" in (tmp_path / "r.html").read_text()
    line = "| a | t | solved | 3 | 40.0 | 20.0 | 40.0 | 10.0 |"
    assert line in (tmp_path / "r.md").read_text()


@pytest.mark.parametrize("held", ['{"spreads": 1}', '{"spreads": [{"task": 1}]}', "["])
def test_spreads_that_are_damaged_are_one_sentence(tmp_path, capsys, held) -> None:
    folder = several(tmp_path / "a", {"raw": 4, "own": 8})
    (folder / spread.RESULT).write_text(held)
    assert main(["eval", "report", str(folder), "--out", str(tmp_path / "r.html")]) == 2
    error = capsys.readouterr().err
    assert spread.RESULT in error
    assert error.count("\n") == 1
