"""The command line, as a newcomer types it."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import shlex
import subprocess
import sys

import pytest
from commands import failed
from processes import ENVIRONMENT, python
from tiny import write_dream_folder

from softmask.cli import generate
from softmask.cli.main import COMMANDS, SUBCOMMANDS, main
from softmask.cli.text_flow import TextFlow
from softmask.config import FEEDBACK_PRESETS


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return str(write_dream_folder(tmp_path_factory.mktemp("cli") / "dream"))


def softmask(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [*python(), "-m", "softmask", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, env=ENVIRONMENT, check=False)


def test_help_of_every_command_comes_without_importing_torch() -> None:
    commands = [[], *([name] for name in COMMANDS if name != "lm_eval")]
    commands += [[name, other] for name, others in SUBCOMMANDS.items() for other in others]
    script = f"""
import sys
from softmask.cli.main import COMMANDS, SUBCOMMANDS, main
for command in {commands}:
    try:
        main([*command, "--help"])
    except SystemExit:
        pass
    print("torch" in sys.modules or "transformers" in sys.modules, command, file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.count("usage: softmask") == len(commands)
    assert [line for line in done.stderr.splitlines() if not line.startswith("False")] == []


def test_without_a_word_it_says_what_it_is_and_what_to_type_first(capsys) -> None:
    assert main([]) == 2
    out, err = capsys.readouterr()
    assert err == ""
    assert "diffusion language models" in out
    assert all(len(line) <= 82 for line in out.splitlines())
    shown = [line.split()[1] for line in out.splitlines() if line.startswith("  softmask")]
    assert shown == ["demo", "generate", "serve", "--help", "chat"]


def test_in_a_pipe_there_is_the_text_and_nothing_else(folder) -> None:
    done = softmask("generate", "--model", folder, "Hello", "--max-new-tokens", "8")
    assert done.returncode == 0
    assert done.stderr == b""
    assert b"\x1b" not in done.stdout
    assert len(done.stdout) > 1


def test_the_prompt_comes_from_the_argument_a_file_or_standard_input(
    folder, tmp_path, capsys, monkeypatch
) -> None:
    settings = ["--model", folder, "--max-new-tokens", "6", "--json"]
    (tmp_path / "prompt.txt").write_text("Hello")

    def here(*arguments: str, stdin: bytes = b"") -> str:
        """In this process, whose standard input is no terminal either."""
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        assert main(["generate", *settings, *arguments]) == 0
        return capsys.readouterr().out

    outputs = [
        here("Hello"),
        here("--file", str(tmp_path / "prompt.txt")),
        here("-", stdin=b"Hello"),
        softmask("generate", *settings, stdin=b"Hello\n").stdout,
    ]
    answers = [json.loads(output) for output in outputs]
    assert len({answer["text"] for answer in answers}) == 1
    assert {answer["prompt"] for answer in answers} == {"Hello"}


def test_a_file_and_standard_input_are_read_alike(tmp_path, capsys, monkeypatch) -> None:
    """The line end of an editor or `echo` is no part of a text, but of a puzzle and of holes."""
    folder = write_dream_folder(tmp_path / "m")
    kinds = {"prompt_kinds": [{"prompt_starts_with": ["Sudoku\n"]}]}
    (folder / "sampling_config.json").write_text(json.dumps(kinds))
    path = tmp_path / "text"
    for text, infill, prompt in (
        ("\ufeffHello\r\n", [], "Hello"),
        ("Hello\n\n", [], "Hello\n"),
        ("Sudoku\n01\n", [], "Sudoku\n01\n"),
        ("a [[2]]\n", ["--infill"], "a [[2]]\n"),
        ("a [[2]]", ["--infill"], "a [[2]]"),
        ("Sudoku\r\n[[1]]1\r\n", ["--infill"], "Sudoku\n[[1]]1\n"),
        ("Sudoku\n[[1]]1", ["--infill"], "Sudoku\n[[1]]1\n"),  # as `$(cat FILE)` leaves it
    ):
        path.write_bytes(text.encode())
        words = ["generate", "--model", str(folder), "--max-new-tokens", "2", "--json", *infill]
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        for source in ([], ["--file", str(path)]):
            assert main([*words, *source]) == 0
            assert json.loads(capsys.readouterr().out)["prompt"] == prompt


def test_a_backslash_before_a_backslash_is_one(folder, capsys) -> None:
    text = r"a\\nb\n\t\\[[1]]"
    assert main(["generate", "--model", folder, "--json", "--infill", text]) == 0
    assert json.loads(capsys.readouterr().out)["prompt"] == "a\\nb\n\t\\[[1]]"


def test_of_an_infilling_the_written_tokens_are_counted(folder, tmp_path, capsys, monkeypatch):
    said = []
    monkeypatch.setattr("softmask.cli.generate.say", lambda lines, _args: said.extend(lines))
    words = ["generate", "--model", folder, "--infill", "a long text [[3]] and more of it [[2]]."]
    assert main(words) == 0
    assert main([*words, "--trace", str(tmp_path / "t.json")]) == 0
    costs = [line.split(",")[0] for line in said if line and "forward" in line]
    assert costs == ["5 tokens"] * 2


def test_json_says_what_was_done(folder, capsys) -> None:
    arguments = "--max-new-tokens 6 --steps 3 --alg topk_margin --temperature 0.5 --top-p 0.9 -n 2"
    soft = "--soft-mask-scale 0.5 --soft-mask-k 2 --seed 4 --json"
    assert main(["generate", "--model", folder, "Hi", *arguments.split(), *soft.split()]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["seed"] for line in lines] == [4, 5]
    sampling, soft_mask = lines[0]["settings"]["sampling"], lines[0]["settings"]["soft_mask"]
    assert (sampling["steps"], sampling["alg"], sampling["top_p"]) == (3, "topk_margin", 0.9)
    assert (soft_mask["scale"], soft_mask["k"]) == (0.5, 2)
    assert lines[0]["forwards"] == 3


def test_streamed_pieces_joined_are_the_text(folder, capsys) -> None:
    arguments = ["generate", "--model", folder, "Hi", "--max-new-tokens", "12"]
    assert main(arguments) == 0
    whole = capsys.readouterr().out
    assert main([*arguments, "--stream"]) == 0
    assert capsys.readouterr().out == whole


def test_a_stream_is_wrapped_at_words_in_a_terminal_behind_its_prompt(
    folder, capsys, monkeypatch
) -> None:
    words = ["generate", "--model", folder, "One two", "--max-new-tokens", "4", "--stream"]
    monkeypatch.setenv("COLUMNS", "10")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main([*words, "--quiet"]) == 0
    colours = re.compile(r"\x1b\[\d*m")
    assert colours.sub("", capsys.readouterr().out).startswith("One two")

    def pieces(flow: TextFlow) -> None:
        for piece in (" the", " bl", "ue bi", "rd\n a", "\u4f60\u597d" * 4, " x", "y"):
            flow.write(piece)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), TextFlow("Tom and") as flow:
        pieces(flow)
    wide = "\u4f60\u597d" * 2  # eight columns
    lines = ["Tom and ", "the blue ", "bird", f" a{wide}", f"{wide} ", ""]
    assert colours.sub("", capsys.readouterr().out).split("\n") == lines


def test_holes_are_filled_with_escapes_understood(folder, capsys) -> None:
    text = r"def f(x):\n    return [[3]]"
    assert main(["generate", "--model", folder, "--infill", text]) == 0
    assert capsys.readouterr().out.startswith("def f(x):\n    return ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x", "-n", "0"], "error: -n must be at least 1, not 0"),
        (["x", "--num-return-sequences=0"], "error: --num-return-sequences must be at least 1"),
        (["x", "--steps", "0"], "error: --steps must be at least 1"),
        (["x", "--diffusion-steps", "-4"], "error: --diffusion-steps must be at least 1"),
        (["x", "--steps", "many"], "--steps"),
        (["x", "--alg", "best"], "alg must be one of"),
        (["x", "--top-p", "1.5"], "error: --top-p must lie in"),
        (["x", "--max-new-tokens", "0"], "error: --max-new-tokens must be at least 1"),
        (["x", "--max-new-tokens", "1000"], "error: --max-new-tokens is 1000, but the model's con"),
        (["x", "--max-new-tokens", "9" * 20], "context"),
        (["x", "-n", "9999999", "--max-new-tokens", "4"], "at most 4096 texts"),
        (["x", "--threads", "100000"], "--threads must lie between 1 and 1024"),
        (["x", "--soft-mask-scale", "7"], "scale"),
        (["x", "--soft-mask-k", "2"], "--soft-mask-scale"),
        (
            ["x", "--soft-mask-scale", ".5", "--soft-mask-k", "9999", "--max-new-tokens", "8"],
            "lower k",
        ),
        (["x", "--no-soft-mask", "--soft-mask-k", "2"], "contradict"),
        (["x", "--no-soft-mask", "--feedback", "rcd"], "contradict"),
        (["x", "--feedback", "off", "--soft-mask-k", "2"], "feedback off and k"),
        (["x", "--feedback", "published"], "has no soft-mask parameters"),
        (["x", "--feedback", "round"], "--feedback"),
        (["x", "--json", "--stream"], "contradict"),
        (["x", "--file", "y"], "one prompt"),
        (["--file", "/no/such/file"], "no file"),
        (["x", "--html=~nobody-of-this-name/x"], "no such user"),
        (
            ["x", "--rules", "./good.py"],
            "is no module: name it as in an import, without folder and .py, as in good",
        ),
        (["x", "--alg", "./good.py:patient"], "is no module: name it as in an import"),
        (["x", "--rules", ""], "is no module"),
        (["x", "-t", "0.5"], "no option -t (a prompt that begins with - stands behind --)"),
        (["-Hello"], "no option -Hello (a prompt that begins with - stands behind --)"),
        (["x", "--regex", "-?[0-9]+"], "(one that begins with - is written --regex=VALUE)"),
        (["x", "--alg", ":"], "write MODULE:NAME"),
        (["--file", "/"], "/ is a folder: give a file"),
        (["Hi", "there", "you"], 'put the prompt in quotes, as in "One day, Tom": it goes on with'),
        ([""], "prompt is empty"),
        (["--infill", "no hole"], "mark holes"),
        (["x", "--dtype", "int3"], "dtype"),
        (["x", "--unknown"], "--unknown"),
        (["x", "--system", "y"], "chat template"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(folder, capsys, arguments, message) -> None:
    assert message in failed(capsys, "generate", "--model", folder, *arguments)


def test_feedback_by_its_name_is_for_any_checkpoint_and_options_change_it(folder, capsys) -> None:
    words = ["generate", "--model", folder, "x", "--max-new-tokens", "6", "--json"]
    found = []
    for more in ([], ["--soft-mask-scale", "0.5", "--soft-mask-k", "3"]):
        assert main([*words, "--feedback", "spherical", *more]) == 0
        found.append(json.loads(capsys.readouterr().out)["settings"]["soft_mask"])
    preset, changed = found
    assert preset == dataclasses.asdict(FEEDBACK_PRESETS["spherical"])
    assert changed == preset | {"scale": 0.5, "k": 3}


def test_a_home_folder_is_one_also_where_no_shell_makes_it(folder, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    words = ["x", "--model", folder, "--max-new-tokens", "2", "--trace=~/t.json", "--quiet"]
    assert main(["generate", *words]) == 0
    assert (tmp_path / "t.json").is_file()


def test_rules_that_are_no_python_are_one_line(folder, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken_rules.py").write_text("def rule(:\n")
    said = failed(capsys, "generate", "x", "--model", folder, "--rules", "broken_rules")
    assert "broken_rules.py:1 is no Python (" in said
    lines = ["import softmask", "", "", "@softmask.commit_rule('patient', retruns='rows')"]
    (tmp_path / "mistyped_rules.py").write_text("\n".join([*lines, "def rule(view): ..."]))
    for words in (["--rules", "mistyped_rules"], ["--alg", "mistyped_rules:patient"]):
        said = failed(capsys, "generate", "x", "--model", folder, *words)
        assert re.search(r"mistyped_rules\.py:4: .*unexpected keyword argument 'retruns'", said)


def test_a_path_that_is_not_there_is_no_name_on_the_hub(capsys) -> None:
    assert "there is no folder ./nothere" in failed(capsys, "generate", "x", "--model", "./nothere")


def test_invalid_utf8_on_standard_input_is_one_line(folder) -> None:
    done = softmask("generate", "--model", folder, stdin=b"caf\xe9")
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.decode().splitlines() == [
        "softmask: error: standard input is not UTF-8 (byte 3): convert it first"
    ]


def test_a_folder_that_is_not_there_is_one_line(capsys) -> None:
    assert "no folder" in failed(capsys, "generate", "--model", "/no/such/model", "x")


def test_chat_needs_a_chat_template(folder, capsys) -> None:
    assert "no chat template" in failed(capsys, "chat", "--model", folder)


def test_chat_answers_line_by_line_and_remembers(tmp_path) -> None:
    folder = write_dream_folder(tmp_path / "chat", chat=True)
    done = softmask(
        "chat", "--model", str(folder), "--max-new-tokens", "5", stdin=b"hi\n/clear\nyo\n/exit\n"
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == b""


@pytest.mark.slow
def test_bench_tells_people_tables_and_scripts_json(folder) -> None:
    arguments = "--prompt-tokens 4 --max-new-tokens 8 --steps 4 --repeat 2 --threads 1 --json"
    done = softmask("bench", "--model", folder, *arguments.split())
    assert done.returncode == 0, done.stderr
    *tables, last = done.stdout.decode().splitlines()
    assert any("soft / plain" in line for line in tables)
    assert any("4 + 8 tokens, batch 1, 4 steps, entropy" in line for line in tables)
    result = json.loads(last)
    assert result["plain"]["forwards"] == result["soft"]["forwards"] == 4
    assert result["plain"]["peak_mb"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--dtype float99", "dtype"),
        ("--device toaster", "device"),
        ("--threads 0", "--threads"),
        ("--alg best", "alg must be one of"),
        ("--steps 0", "--steps"),
    ],
)
def test_a_bench_that_cannot_run_is_one_line(folder, capsys, arguments, message) -> None:
    assert message in failed(capsys, "bench", "--model", folder, *arguments.split())


def test_a_character_that_a_pipe_does_not_know_loses_no_text(folder, monkeypatch) -> None:
    pipe = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(pipe, encoding="cp1252"))
    words = ["--model", str(folder), "--device", "cpu", "--infill", "\u00e9 \u2192 [[1]]"]
    assert main(["generate", *words]) == 0
    assert pipe.getvalue().startswith(b"\xe9 \\u2192 ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [("--hidden 10 --heads 3", "must divide"), ("--hidden 8 --heads 0", "--heads")],
)
def test_a_random_model_of_no_shape_is_one_line(capsys, arguments, message) -> None:
    assert message in failed(capsys, "bench", *arguments.split())


def test_a_recipe_that_does_not_exist_or_is_misspelt_is_one_line(capsys, tmp_path) -> None:
    assert "default" in failed(capsys, "train", "nothing")
    out = str(tmp_path / "run")
    line = failed(capsys, "train", "default", "--set", "corpus.puzle_share=1", "--out", out)
    assert "puzzle_share" in line
    assert "key=value" in failed(capsys, "train", "default", "--set", "seed", "--out", out)
    assert not (tmp_path / "run").exists()


def on(stream: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """A command with a shell's redirection."""
    command = f'exec {shlex.join(python())} -m softmask "$@" {stream}'
    return subprocess.run(["sh", "-c", command, "sh", *arguments], capture_output=True, check=False)


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        (">/dev/full", b"softmask: error: standard output"),
        (">&-", b"softmask: error: standard output is closed: send it to a file"),
    ],
)
def test_an_answer_that_cannot_be_printed_is_an_error(folder, stream, message) -> None:
    done = on(stream, "generate", "--model", folder, "Hi", "--max-new-tokens", "4")
    assert done.returncode == 2
    assert done.stderr.startswith(message)
    assert len(done.stderr.splitlines()) == 1


def test_a_closed_standard_error_or_input_does_no_harm(folder) -> None:
    done = on("2>&- <&-", "generate", "--model", folder, "Hi", "--max-new-tokens", "4")
    assert done.returncode == 0
    assert done.stdout


@pytest.mark.parametrize("device", ["meta", "cuda:99", "xla", "nonsense", "mps:3"])
def test_a_device_that_is_not_there_is_one_sentence(folder, capsys, device) -> None:
    assert "device" in failed(capsys, "generate", "--model", folder, "Hi", "--device", device)


def test_a_misspelt_option_names_the_nearest_and_no_option_is_cut_short(capsys) -> None:
    assert "no option --stepz: did you mean --steps?" in failed(
        capsys, "generate", "Hi", "--stepz", "3"
    )
    assert "did you mean --soft-mask-scale?" in failed(
        capsys, "generate", "Hi", "--soft-mask-scal=.5"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("genrate x", "there is no command genrate: did you mean generate?"),
        ("eval sute", "there is no command eval sute: did you mean eval suite?"),
        ("frobnicate", "there is no command frobnicate: `softmask --help` lists them"),
        ("--quiet generate x", "options stand behind the command: softmask generate --quiet"),
        ("--quiet", "required: COMMAND"),
    ],
)
def test_a_misspelt_command_names_the_nearest(capsys, words, message) -> None:
    assert message in failed(capsys, *words.split())


@pytest.mark.parametrize("recording", ["--html", "--svg", "--trace"])
@pytest.mark.parametrize("prompt", [["Hi"], ["--infill", "[[4]]"]], ids=["text", "hole"])
def test_a_run_that_draws_its_tokens_is_recorded(folder, tmp_path, prompt, recording) -> None:
    settings = ["--max-new-tokens", "4", "--temperature", "0.8", "--soft-mask-scale", "0.5"]
    path = tmp_path / "run"
    assert main(["generate", "--model", folder, *prompt, *settings, recording, str(path)]) == 0
    assert path.stat().st_size > 500


def test_a_negative_number_with_an_exponent_is_a_value(folder, capsys) -> None:
    settings = ["--soft-mask-scale", "0.5", "--soft-mask-offset", "-1e-3", "--max-new-tokens", "4"]
    assert main(["generate", "--model", folder, "Hi", *settings, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["settings"]["soft_mask"]["offset"] == -1e-3


def test_what_cannot_be_written_is_named(folder, capsys, tmp_path) -> None:
    command = ["generate", "--model", folder, "Hi", "--max-new-tokens", "4", "--html"]
    assert f"{tmp_path} is a folder: name a file" in failed(capsys, *command, str(tmp_path))
    two = [str(tmp_path / "x"), "--svg", str(tmp_path / "x")]
    assert "two recordings have one name" in failed(capsys, *command, *two)
    assert main([*command, "/dev/full"]) == 2
    written, said = capsys.readouterr()
    assert "/dev/full: No space left on device" in said
    assert main(command[:-1]) == 0
    assert capsys.readouterr().out == written  # the text is not lost with its recording
    assert "File name too long" in failed(capsys, *command, str(tmp_path / ("x" * 300)))
    assert "no such user" in failed(capsys, "export", "--model", folder, "~nosuch/x")
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_leaves_what_was_decided_on_the_screen(capsys, monkeypatch) -> None:
    def stopped(generation, _args, _start=None) -> None:
        for _ in zip(range(3), generation, strict=False):
            pass
        raise KeyboardInterrupt

    monkeypatch.setattr(generate, "show_steps", stopped)
    for stream in (sys.stdout, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True)
    words = ["--max-new-tokens", "9", "--block-length", "1", "--temperature", "0"]
    assert main(["generate", "One day", *words]) == 130
    shown, said = capsys.readouterr()
    _, _, decided = shown.partition("One day")
    assert re.sub(r"\x1b\[\d+m", "", decided).strip()
    assert "stopped after 3 forwards" in said
