"""models: the runs below a folder, what became of them, and the command that goes on."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from runs import pretraining, recipe_of

from softmask.cli.main import main
from softmask.training import trainer
from softmask.training.run import train


def listed(capsys, *arguments: str) -> dict[str, dict]:
    assert main(["models", "--json", *arguments]) == 0
    entries = json.loads(capsys.readouterr().out.splitlines()[-1])
    return {entry["name"]: entry for entry in entries}


class Stopped(Exception):
    """In place of a kill."""


def stop_after(step: int, recipe, folder: Path, monkeypatch) -> None:
    """A run that ends by an error at the checkpoint behind that after `step`."""
    mark = trainer.mark_complete

    def mark_or_stop(checkpoint: Path, at: int, processes: int) -> None:
        if at > step:
            raise Stopped
        mark(checkpoint, at, processes)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "mark_complete", mark_or_stop)
        with pytest.raises(Stopped):
            train(recipe, folder, device="cpu")


def test_a_stopped_run_is_listed_with_the_command_that_finishes_it(
    tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe, folder = recipe_of(pretraining(tmp_path)), Path("runs", "my run")
    stop_after(3, recipe, folder, monkeypatch)
    entry = listed(capsys)["runs/my run"]
    assert (entry["kind"], entry["what"]) == ("run", "unfinished, kept up to update 3 of 8")
    assert entry["use"] == "softmask train 'runs/my run/recipe.json' --out 'runs/my run'"
    assert main([*shlex.split(entry["use"])[1:], "--device", "cpu"]) == 0
    found = listed(capsys)
    assert "runs/my run" not in found
    entry = found["runs/my run/model"]
    assert (entry["kind"], entry["what"]) == ("model", "Dream model, soft-masked")
    assert json.loads((folder / "done.json").read_text())["steps"] == 8


def test_a_link_to_what_may_not_be_looked_into_hides_nothing_else(tmp_path, capsys) -> None:
    place = Path("/proc/1/cwd")
    try:
        place.is_dir()
    except PermissionError:
        (tmp_path / "link").symlink_to(place)
        assert listed(capsys, str(tmp_path)).keys() == {"default"}
    else:
        pytest.skip("this user may look into everything")


def test_a_run_that_is_not_whole_is_said_to_be(tmp_path, capsys) -> None:
    for name, recipe, done in (
        ("cut", '{"train', None),
        ("other", '{"name": "soup"}', None),
        ("gone", '{"train": {"stages": []}}', '{"result": "adapter"}'),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / ".lock").touch()
        (tmp_path / name / "recipe.json").write_text(recipe)
        if done is not None:
            (tmp_path / name / "done.json").write_text(done)
    found = listed(capsys, str(tmp_path))
    problems = {Path(name).name: entry["problem"] for name, entry in found.items()}
    assert "recipe.json is damaged" in problems["cut"]
    assert "holds no whole run" in problems["other"]
    assert "is a finished run, but" in problems["gone"]
    assert main(["models", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("not whole") == 3
