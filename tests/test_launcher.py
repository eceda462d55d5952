"""What a launcher of several processes says, and the command that goes on under it."""

from __future__ import annotations

import pytest

from softmask import launcher
from softmask.cli import train as train_command
from softmask.cli.main import main


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({}, "softmask"),
        ({"WORLD_SIZE": "1", "RANK": "0"}, "softmask"),
        (
            {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"},
            "torchrun --nproc_per_node 2 -m softmask",
        ),
        (
            {"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"},
            "torchrun --nnodes 2 --nproc_per_node 4 -m softmask",
        ),
    ],
)
def test_a_command_is_started_as_its_process_was(environment, words, monkeypatch) -> None:
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert " ".join(launcher.command()) == words


@pytest.mark.parametrize("rank", [0, 1])
def test_one_of_several_processes_says_how_to_go_on_and_names_the_launcher(
    rank, monkeypatch, capsys
) -> None:
    def interrupted(_args) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(train_command, "_run", interrupted)
    for name, value in {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "RANK": rank}.items():
        monkeypatch.setenv(name, str(value))
    assert main(["train", "mix", "--overwrite"]) == 130
    said = "go on with: torchrun --nproc_per_node 2 -m softmask train mix\n"
    written = capsys.readouterr().err
    assert written.endswith(said) if rank == 0 else "go on with" not in written
