"""The folder of an evaluation: one process at a time, nothing half-written, damage is named."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import pytest

from softmask.cli.main import main
from softmask.evaluation import record, responses
from softmask.files import LOCK, locked

SETTINGS = {"model": {"name": "m"}, "model_args": {}}
ANSWER = {"key": "k", "text": "a", "forwards": 1, "tokens": 1}


def begin(folder: Path) -> None:
    with record.claimed(folder, SETTINGS, False) as done:
        assert done is None
        record.write(folder / record.RUN, {"command": [], **SETTINGS})


def command(model: Path, data: Path, out: Path, *more: str) -> list[str]:
    words = ["--tasks", "countdown_cd3_plain", "--model", str(model), "--data-dir", str(data)]
    words += ["--device", "cpu", "--limit", "2", "--max-new-tokens", "4", "--out", str(out)]
    return ["eval", *words, *more]


def refusal(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The sentence of a command that is refused, behind what it shows of its progress."""
    capsys.readouterr()
    assert main(words) == 2
    line: str = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("softmask: error: ")
    return line


def summary_of(folder: Path) -> list[dict]:
    return json.loads((folder / "results.json").read_text())["summary"]


@pytest.fixture(scope="module")
def run(model, data, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("record") / "run"
    assert main(command(model, data, out)) == 0
    return out


def test_two_evaluations_in_one_folder_are_refused(model, data, run, tmp_path, capsys) -> None:
    out = tmp_path / "run"
    shutil.copytree(run, out)
    (out / "results.json").unlink()
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    for more in ((), ("--overwrite",)):
        with locked(out, "evaluates"):
            assert "another process evaluates in" in refusal(
                command(model, data, out, *more), capsys
            )
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert main(command(model, data, out)) == 0
    assert summary_of(out) == summary_of(run)


def test_a_finished_evaluation_is_shown_from_a_folder_that_cannot_be_written(
    model, data, run, capsys, monkeypatch
) -> None:
    monkeypatch.setattr(record, "locked", None)
    assert main(command(model, data, run)) == 0
    assert "is finished already" in capsys.readouterr().err


def test_a_run_that_failed_before_its_first_answer_leaves_the_folder_to_the_corrected_command(
    model, data, tmp_path, capsys
) -> None:
    out = tmp_path / "run"
    words = command(model, data, out)
    at = words.index("--data-dir")
    assert "--data-dir" in refusal(words[:at] + words[at + 2 :], capsys)
    assert (out / "run.json").is_file()
    assert main(command(model, data, out)) == 0
    run = json.loads((out / "run.json").read_text())
    assert (run["evaluation"]["data_dir"], run["starts_before"]) == (str(data), [])
    # What has an answer is still kept from another evaluation.
    (out / "results.json").unlink()
    assert "holds an evaluation with another evaluation" in refusal(
        command(model, data, out, "--limit", "1"), capsys
    )


def test_overwrite_deletes_what_an_evaluation_wrote_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    begin(folder)
    for name in ("results.json", "responses.0.jsonl", "samples_t.jsonl", "notes.txt"):
        (folder / name).write_text("{}\n")
    with record.claimed(folder, {"model": "other"}, True) as done:
        assert done is None
        assert {path.name for path in folder.iterdir()} == {"notes.txt", LOCK}


def test_what_a_kill_leaves_of_the_first_file_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "run.json.partial").write_text('{"comm')
    (tmp_path / ".lock").write_text("")
    with record.claimed(tmp_path, SETTINGS, False) as found:
        assert found is None


@pytest.mark.parametrize(
    "files",
    [{"notes.txt": "x"}, {"run.json": "{}"}, {"run.json": '{"command": [], "model_args": 3}'}],
)
def test_a_folder_of_something_else_is_left_as_it_is(tmp_path: Path, files: dict) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    for overwrite in (False, True):
        claim = record.claimed(tmp_path, SETTINGS, overwrite)
        with pytest.raises(ValueError, match="is not empty and holds no evaluation"), claim:
            pass
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == files


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("run.json", "{", "run.json"),
        ("run.json", "[]", "holds no evaluation"),
        ("results.json", '{"summary": [', "results.json"),
        ("results.json", "[]", "results.json holds no results"),
        ("results.json", "{}", "results.json holds no summary"),
        ("results.json", '{"summary": [{"task": 1}]}', "results.json holds no summary"),
        ("responses.0.jsonl", '{"key": \n{}\n', "responses.0.jsonl, line 1, is damaged"),
        ("responses.0.jsonl", f"{json.dumps(ANSWER)}\n[]\n", "line 2, is no answer"),
        ("responses.0.jsonl", '{"key": "k", "text": 3}\n', "line 1, is no answer"),
        ("responses.0.jsonl", '{"key": "k", "nats": 1.0}\n', "line 1, is no answer"),
        ("responses.0.jsonl", "\xff\n", "responses.0.jsonl, line 1"),
    ],
)
def test_a_damaged_record_is_named_in_one_sentence(
    model, data, run, tmp_path, capsys, name, content, message
) -> None:
    out = tmp_path / "run"
    shutil.copytree(run, out)
    if name.startswith("responses"):
        (out / "results.json").unlink()
    (out / name).write_bytes(content.encode("latin-1"))
    assert message in refusal(command(model, data, out), capsys)
    assert (out / name).read_bytes() == content.encode("latin-1")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("samples_countdown_cd3_plain.jsonl", "{}\n", "line 1, is no sample"),
        ("samples_countdown_cd3_plain.jsonl", "{\n", "line 1, is damaged"),
        (
            "samples_countdown_cd3_plain.jsonl",
            '{"doc_hash": 1, "doc_id": 1, "filter": {}, "metrics": []}\n',
            "line 1, is no sample",
        ),
        ("results.json", '{"summary": 3}', "holds no summary"),
    ],
)
def test_a_comparison_names_what_is_damaged(run, tmp_path, capsys, name, content, message) -> None:
    out = tmp_path / "run"
    shutil.copytree(run, out)
    (out / name).write_text(content)
    assert message in refusal(["eval", "compare", str(run), str(out)], capsys)


@pytest.mark.parametrize("full", ["run.json", "responses.0.jsonl", "samples_", "results.json"])
def test_a_full_disk_is_one_sentence_and_the_run_goes_on_behind_it(
    model, data, run, tmp_path, capsys, monkeypatch, full
) -> None:
    out = tmp_path / "run"
    write, append = record.write_atomically, responses.append_line
    with monkeypatch.context() as patch:

        def refuse(path: Path, content: str) -> None:
            if path.name.startswith(full):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            (append if path.name.startswith("responses") else write)(path, content)

        patch.setattr(record, "write_atomically", refuse)
        patch.setattr("softmask.evaluation.evaluate.write_atomically", refuse)
        patch.setattr(responses, "append_line", refuse)
        message = refusal(command(model, data, out), capsys)
    assert full in message
    assert "No space left on device" in message
    assert not (out / "results.json").exists()
    assert main(command(model, data, out)) == 0
    assert summary_of(out) == summary_of(run)


def test_the_record_says_what_confined_the_programs(model, data, tmp_path) -> None:
    out = tmp_path / "run"
    words = command(model, data, out, "--confirm-run-unsafe-code")
    words[2] = "mbpp_instruct"
    assert main(words) == 0
    programs = json.loads((out / "run.json").read_text())["programs"]
    assert programs["mbpp_instruct"].endswith("rlimits, audit hook")


def test_a_task_of_upstream_that_runs_programs_says_that_it_has_no_sandbox(
    model, tmp_path, capsys
) -> None:
    (tmp_path / "own.yaml").write_text(
        "task: own_code\ndataset_path: json\nunsafe_code: true\noutput_type: generate_until\n"
        "test_split: test\ndoc_to_text: a\ndoc_to_target: b\n"
    )
    words = ["eval", "--tasks", "own_code", "--include-path", str(tmp_path)]
    words += ["--model", str(model), "--device", "cpu", "--out", str(tmp_path / "r")]
    assert "the model writes (without a sandbox)" in refusal(words, capsys)


def test_what_a_broken_installation_left_ends_no_evaluation(tmp_path, monkeypatch) -> None:
    (tmp_path / "broken-1.0.dist-info").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "torch" in record.origin(["x"])["packages"]
