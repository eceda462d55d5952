"""softmask chat, as it is typed: in a pipe, and in a terminal with its keys."""

from __future__ import annotations

import io
import json
import os
import re
import sys

import pytest
from commands import failed
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput
from tiny import change_json, write_dream_folder, write_json

from softmask.cli import chat
from softmask.cli.chat_session import DEFAULTS, MAX_NEW_TOKENS, Session
from softmask.cli.main import main
from softmask.config import SamplingConfig
from softmask.hub.load import load
from softmask.training.config import SourceConfig
from softmask.training.messages import messages_of

ENTER, NEW_LINE, CTRL_C, CTRL_D = "\r", "\x1b\r", "\x03", "\x04"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return str(write_dream_folder(tmp_path_factory.mktemp("chat") / "dream", chat=True))


@pytest.fixture(scope="module")
def checkpoint(folder):
    return load(folder, device="cpu")


@pytest.fixture
def piped(folder, capsys, monkeypatch):
    """Lines on standard input; what came of them on standard output."""

    def say(text: str, *options: str) -> str:
        monkeypatch.setattr(
            "sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode()), encoding="utf-8")
        )
        assert main(["chat", "--model", folder, "--max-new-tokens", "8", *options]) == 0
        captured = capsys.readouterr()
        assert captured.err == ""
        return captured.out

    return say


@pytest.fixture
def typed(folder, capsys, monkeypatch, tmp_path):
    """Keys in a terminal; what was printed, without the live view."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))

    def type_keys(keys: str, *options: str) -> str:
        for stream in (sys.stdin, sys.stdout, sys.stderr):
            monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
        with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
            pipe.send_text(keys)
            words = ["--model", folder, "--max-new-tokens", "8", "--no-live", *options]
            assert main(["chat", *words]) == 0
        captured = capsys.readouterr()
        return captured.out + captured.err

    return type_keys


def session(checkpoint, *options: str) -> Session:
    parser = chat.make_parser()
    return Session(checkpoint, parser.parse_args(options), parser)


def answer(one: Session, text: str) -> str:
    run = one.ask(text)
    one.keep(run, run.completions()[0].text)
    return one.messages[-1]["content"]


def test_in_a_pipe_a_line_is_a_turn_and_nothing_but_answers_is_printed(piped) -> None:
    first = piped("hi\n", "--seed", "3")
    assert piped("hi\n\n/clear\nhi\n/exit\nnever asked\n", "--seed", "3") == first * 2
    assert piped("\ufeff/clear\nhi\n", "--seed", "3") == first  # a file of some editors
    assert piped("hi\nhi\n", "--seed", "3") != first * 2  # the second knows of the first


def test_in_a_pipe_tables_do_not_come_between_the_answers(folder, capsys, monkeypatch) -> None:
    said = io.BytesIO(b"/set\n/help\n/system\n/clear\n")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(said, encoding="utf-8"))
    assert main(["chat", "--model", folder]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert {"top_p\t0.95\tchat", "off: top_k", "no system message is set"} <= {
        line.split(",")[0] for line in err.splitlines()
    }


@pytest.mark.parametrize(
    ("typed", "pair"),
    [
        ("/set top_p 0.5", ("top_p", "0.5")),
        ("/set top-p=0.5", ("top-p", "0.5")),
        ("/set  top_p =  0.5", ("top_p", "0.5")),
        ("/set alg_options left=0.05,right=1", ("alg_options", "left=0.05,right=1")),
        ("/set alg_options=left=0.05", ("alg_options", "left=0.05")),
    ],
)
def test_a_setting_may_have_a_value_with_a_sign_of_its_own(
    typed, pair, folder, capsys, monkeypatch
) -> None:
    given = []
    monkeypatch.setattr(Session, "set", lambda _, *words: given.append(words))
    said = io.BytesIO(f"{typed}\n".encode())
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(said, encoding="utf-8"))
    assert main(["chat", "--model", folder]) == 0
    assert given == [pair]


def test_a_setting_is_changed_by_its_one_name_and_taken_back(checkpoint) -> None:
    one = session(checkpoint, "--top-p", "0.9")
    shown = {name: (value, whom) for name, value, whom in one.rows()}
    assert shown["block_length"] == ("32", "chat")
    assert shown["top_p"] == ("0.9", "you")
    assert shown["steps"][0] == "one per mask"
    one.set("temperature", "0.5")
    one.set("soft-mask-scale", "0.4")
    one.set("soft_mask_mixture", "norm_kept")
    assert one.sampling.temperature == 0.5
    assert one.ask("hi").soft_mask.scale == 0.4
    one.set("feedback", "spherical")
    found = one.ask("hi").soft_mask
    assert (found.scale, found.weight, found.mixture) == (0.4, "constant", "norm_kept")
    assert ("soft_mask_weight", "constant", "feedback spherical") in one.rows()
    one.set("feedback", "default")
    one.set("soft_mask_mixture", "default")
    one.set("soft_mask_scale", "default")
    one.set("soft_mask", "off")
    assert one.ask("hi").soft_mask is None
    for name, value, message in [
        ("temprature", "1", "did you mean 'temperature'"),
        ("temperature", "warm", r"takes a number \(it must be 0 or lie between 1e-06 and 100\)"),
        ("seed", "warm", "takes a whole number, not 'warm'"),
        ("alg", "nowhere:rule", "nowhere"),
        ("max_new_tokens", "99999", "but the model's context is 128"),
        ("temperature", "-1", "temperature must be"),
        ("soft_mask", "maybe", "is on or off"),
        ("feedback", "round", "feedback must be one of published"),
        ("max_new_tokens", "0", "at least 1"),
        ("refresh_every", "2", "give cache too"),
    ]:
        with pytest.raises(ValueError, match=message):
            one.set(name, value)
    assert one.sampling.temperature == 0.5
    assert "{}" not in str(one.rows())
    assert one.ask("hi").canvas_BL.shape[1] < checkpoint.model.config.max_position_embeddings + 1


def test_what_a_checkpoint_without_parameters_does_not_say_is_not_said_to_be_its_own(
    checkpoint,
) -> None:
    assert checkpoint.soft_mask is None
    one = session(checkpoint)
    with pytest.raises(ValueError, match="has no soft-mask parameters: /set feedback spherical"):
        one.set("soft_mask", "on")
    one.set("soft_mask_scale", "0.5")
    rows = {name: whom for name, _, whom in one.rows() if name.startswith("soft_mask_")}
    assert rows.pop("soft_mask_scale") == "you"
    assert set(rows.values()) == {""}
    one.set("soft_mask", "on")


def test_a_checkpoint_settings_win_over_those_of_the_chat_and_yours_over_both(
    tmp_path, checkpoint
) -> None:
    assert session(checkpoint).sampling == SamplingConfig(
        steps=MAX_NEW_TOKENS, **{k: v for group in DEFAULTS for k, v in group.items()}
    )
    folder = write_dream_folder(tmp_path / "own", chat=True)
    write_json(folder / "sampling_config.json", {"temperature": 0.7, "block_length": None})
    own = load(folder, device="cpu")
    named = session(own).sampling
    assert (named.temperature, named.top_p, named.block_length, named.lookahead) == (
        *(0.7, None),
        *(None, None),
    )
    mine = session(own, "--temperature", "0.1", "--block-length", "8").sampling
    assert (mine.temperature, mine.block_length, mine.lookahead) == (0.1, 8, 64)


def test_an_answer_has_the_room_that_the_conversation_leaves(checkpoint) -> None:
    one = session(checkpoint)
    context = checkpoint.model.config.max_position_embeddings
    assert one.ask("hi").canvas_BL.shape[1] == context
    with pytest.raises(ValueError, match="no room is left"):
        one.ask("x" * context)
    assert one.messages == []


def test_retry_answers_the_last_question_by_another_seed(checkpoint) -> None:
    one = session(checkpoint, "--seed", "4", "--max-new-tokens", "8", "--temperature", "2")
    with pytest.raises(ValueError, match="no answer yet"):
        one.again(None)
    answer(one, "hi")
    before = one.messages
    run = one.again(None)
    assert (run.seeds, run.prompts[0]) == ([5], before[:-1])
    one.keep(run, run.completions()[0].text)
    assert [m["role"] for m in one.messages] == ["user", "assistant"]
    again = one.again(4)
    assert again.completions()[0].text == before[-1]["content"]
    one.set("temperature", "0")
    with pytest.raises(ValueError, match="would be the same"):
        one.again(None)


def test_a_saved_conversation_is_a_line_of_training_data(checkpoint, tmp_path) -> None:
    one = session(checkpoint, "--system", "Be brief", "--max-new-tokens", "8")
    path = tmp_path / "chats.jsonl"
    with pytest.raises(ValueError, match="no conversation"):
        one.save(str(path))
    answer(one, "hi")
    one.keep(one.again(1), "a line that ends")
    path.write_text('{"messages": []}')  # whose line feed is missing
    assert one.save(str(path)) == 2
    assert one.save(str(path)) == 3
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert messages_of(SourceConfig(path=str(path)), "row", rows[2]) == [
        {"role": "system", "content": "Be brief"},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "a line that ends"},
    ]
    with pytest.raises(ValueError, match=r"ends in \.jsonl"):
        one.save(str(tmp_path / "notes.md"))


def test_keys_send_begin_a_line_take_back_and_leave(typed, monkeypatch) -> None:
    asked = []
    ask = Session.ask
    monkeypatch.setattr(Session, "ask", lambda self, text: asked.append(text) or ask(self, text))
    keys = f"one\\{ENTER}two{NEW_LINE}three{ENTER}not this{CTRL_C}{'x' * 200}{ENTER}/hlep{ENTER}"
    said = typed(f"{keys}/set temperature 0.9{ENTER}/he\t{ENTER}{CTRL_D}")
    assert asked == ["one\ntwo\nthree", "x" * 200]
    assert re.search(r"[1-8] forwards", said)  # fewer where the answer ends early
    assert "error: no room is left in the model's context" in said
    assert "error: there is no command /hlep: did you mean /help?" in said
    assert "temperature 0.9" in said
    assert "/system" in said  # from /he and Tab


def test_ctrl_c_ends_the_answer_and_what_was_decided_stays(typed, monkeypatch) -> None:
    steps = iter([8, 0])

    def stopped(run, *_args) -> None:
        for _ in zip(range(next(steps)), run, strict=False):
            pass
        raise KeyboardInterrupt

    kept = []
    keep = Session.keep
    monkeypatch.setattr(
        Session, "keep", lambda self, *turn: kept.append(turn[1]) or keep(self, *turn)
    )
    monkeypatch.setattr(chat, "show_steps", stopped)
    said = typed(f"hi{ENTER}again{ENTER}{CTRL_D}", "--seed", "1", "--block-length", "1")
    assert len(kept) == 1
    assert "stopped after 8 forwards" in said
    assert "the turn is taken back" in said


def test_what_was_typed_is_there_in_the_next_session(typed, tmp_path) -> None:
    said = typed(f"/system Be brief{ENTER}/system -{ENTER}/clear{ENTER}{CTRL_D}")
    for line in ("message is set", "message is removed", "conversation is forgotten"):
        assert line in said
    assert typed(f"/system Be brief{ENTER}{CTRL_D}")
    assert "Be brief" in typed(f"\x1b[A{ENTER}/system{ENTER}{CTRL_D}").replace("\n", " ")
    history = tmp_path / "state" / "softmask" / "chat_history"
    assert history.stat().st_mode & 0o077 == 0


def test_a_mistake_in_a_pipe_ends_with_one_line_and_exit_code_2(folder, capsys, monkeypatch):
    monkeypatch.setattr(
        "sys.stdin", io.TextIOWrapper(io.BytesIO(b"/set top_p 7\nhi\n"), encoding="utf-8")
    )
    assert "top_p must lie in" in failed(capsys, "chat", "--model", folder)


@pytest.mark.slow
def test_a_chat_in_a_terminal_from_the_first_line_to_the_last(tmp_path) -> None:
    from terminal import CTRL_C, CTRL_D, Terminal

    folder = write_dream_folder(tmp_path / "dream", chat=True, max_position_embeddings=2048)
    change_json(folder / "config.json", eos_token_id=0)
    command = ["softmask", "chat", "--model", str(folder), "--threads", "1"]
    settings = ["--temperature", "1.5", "--end-penalty", "1000"]
    environment = os.environ | {"XDG_STATE_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    with Terminal([*command, *settings], size=(60, 24), env=environment) as terminal:
        terminal.wait_for("loading")
        terminal.write("Good day")
        terminal.wait_for("/help lists the commands")
        terminal.wait_for("> Good day")
        assert terminal.everything().count("Good day") == 1  # not where the loading was shown too
        terminal.write(ENTER)
        terminal.wait_for(r"step \d+/1024 +forwards \d+ +masks left \d+")
        terminal.write(CTRL_C)
        terminal.wait_for(r"stopped after \d+ forwards|the turn is taken back")
        terminal.write("/set max_new_tokens 8" + ENTER)
        terminal.wait_for("max_new_tokens 8")
        terminal.write("Hello" + ENTER)
        terminal.wait_for(r"8 forwards, .* seed \d+")
        terminal.write("/retry 5" + ENTER)
        terminal.wait_for("seed 5")
        terminal.write(CTRL_D)
        assert terminal.finish() == 0
