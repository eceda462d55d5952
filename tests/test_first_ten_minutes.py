"""The first ten minutes of three people: what each types, and what she must see.

A student with a laptop, an engineer with chats of her own, a researcher with a rule of his own.
Everything is typed into a terminal of 80 columns and 24 lines. By default the commands are forked
from a process that has imported everything (`processes.py`); among the slow tests each is what the
shell would start.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable

import pytest
from processes import ENVIRONMENT, python
from tiny import write_dream_folder

import softmask

pytest.importorskip("pyte")
from terminal import CTRL_C, CTRL_D, Terminal

ENTER = "\r"
Type = Callable[..., Terminal]


@pytest.fixture(
    params=[
        pytest.param("forked", marks=pytest.mark.long),
        pytest.param("started", marks=pytest.mark.slow),
    ],
)
def type_(request, tmp_path) -> Type:
    """Types a command in an empty folder."""
    environment = ENVIRONMENT | {
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "SOFTMASK_CACHE": str(tmp_path / "cache"),
        "PYTHONWARNINGS": "default",
    }
    start = python(environment) if request.param == "forked" else [sys.executable]
    (tmp_path / "work").mkdir()

    def typed(*words: str) -> Terminal:
        command = [*start, "-m", "softmask", *words]
        return Terminal(command, cwd=tmp_path / "work", env=environment)

    return typed


def said(terminal: Terminal) -> str:
    """Everything that a command that succeeds has left on the screen."""
    with terminal:
        assert terminal.finish() == 0, terminal.everything()
        return terminal.everything()


def test_a_student_meets_the_bundled_model(type_) -> None:
    with type_() as nothing:
        assert nothing.finish() == 2
        assert "softmask demo" in nothing.screen()
    with type_("genrate", "One day, Tom") as wrong:
        assert wrong.finish() == 2
        assert "did you mean generate?" in wrong.screen()
    with type_("generate", "One day, Tom", "--max-new-tokens", "24") as story:
        story.wait_for("loading the bundled model")
        story.wait_for(r"forwards \d+")  # the canvas, being denoised
        assert story.finish() == 0
        first = story.everything()
    (seed,) = re.findall(r"--seed (\d+) writes this again", first)
    again = said(type_("generate", "One day, Tom", "--max-new-tokens", "24", "--seed", seed))
    text = re.split(r"\d+ tokens, ", first)[0].strip()  # a story may end before the 24th
    assert text
    assert text in again
    with type_("demo", "--puzzles", "1") as demo:
        demo.wait_for(r"(?s)soft-masked.*plain")  # beside each other, while they are filled in
        assert demo.finish() == 0
        assert "solved" in demo.everything()
    with type_("generate", "--help") as help_:
        assert help_.finish() == 0
        assert "--help-all" in help_.everything()


def test_an_engineer_trains_on_her_own_chats(type_, tmp_path) -> None:
    work = tmp_path / "work"
    write_dream_folder(work / "dream", chat=True, max_position_embeddings=1024)
    rows = [{"question": f"What is {i}?", "answer": f"It is the number {i}."} for i in range(30)]
    (work / "support.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    train = ["train", "--model", "dream", "--data", "support.jsonl", "--batch-size", "2"]
    looked = said(type_(*train, "--dry-run"))
    assert "taken for pairs (question asks, answer is the answer)" in looked
    assert re.search(r"about \d+ s and 0\.\d GB", looked)
    assert "reading" not in looked  # the display is gone, and has torn no line
    assert len(re.findall(r"\d+ in all", " ".join(looked.split()))) == 2
    with type_(*train, "--iters", "400") as long:
        long.wait_for(r"[1-9]\d*/400 ")
        long.write(CTRL_C)
        assert long.finish() == 130
        assert re.search(r"stopped; kept up to update \d+", long.everything())
        assert "go on with: softmask train --model dream" in long.everything().replace("\n", " ")
    assert "unfinished" in said(type_("models"))
    done = said(type_(*train, "--iters", "6", "--out", "runs/short"))
    assert "runs/short/adapter is finished" in done
    more = said(type_(*train, "--iters", "8", "--out", "runs/short"))
    assert "train.steps 6 -> 8" in more.replace("\n", " ")
    with type_("chat", "--adapter", "runs/short/adapter", "--max-new-tokens", "8") as chat:
        chat.wait_for("/help lists the commands")
        chat.write("What is 3?" + ENTER)
        chat.wait_for(r"8 forwards")
        chat.write("/save talk.jsonl" + ENTER)
        chat.wait_for(r"talk\.jsonl(?s:.*)\n>$")
        chat.write(CTRL_D)
        assert chat.finish() == 0
    (kept,) = (work / "talk.jsonl").read_text().splitlines()
    assert [message["role"] for message in json.loads(kept)["messages"]] == ["user", "assistant"]
    assert "the model is in" in said(type_("export", "out", "--adapter", "runs/short/adapter"))
    assert (work / "out" / "model.safetensors").is_file()


RULE = '''
import softmask


@softmask.commit_rule("left_first")
def left_first(rows):
    """Commits from the left, whatever the model is sure of."""
    return -rows.position_N.float()
'''


def test_a_researcher_tries_a_rule_and_reads_a_run(type_, tmp_path, monkeypatch) -> None:
    work = tmp_path / "work"
    (work / "mine.py").write_text(RULE)
    sudoku = ("Sudoku\n0102\n4201\n0003\n2300\nSolution\n", "--steps", "6")
    said(type_("generate", *sudoku, "--alg", "mine:left_first", "--trace", "run.json"))
    trace = softmask.Trace.load(work / "run.json")
    own = trace.committed_P[trace.committed_P >= 0]
    assert (own[1:] >= own[:-1]).all()  # no position before one on its left
    table = trace.to_pandas()
    assert {"position", "step", "token", "entropy", "lambda"} <= set(table.columns)
    trace.save(work / "run.svg")
    assert (work / "run.svg").read_text().startswith("<svg")
    assert "left_first" in said(type_("generate", "--rules", "mine", "--help-all"))
