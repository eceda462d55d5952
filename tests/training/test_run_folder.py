"""The folder of a run when something goes wrong: kills, damage, full disks, other data, two runs.

Whatever it is, it is one sentence that names the file, and the run goes on to the same numbers.
"""

from __future__ import annotations

import dataclasses
import json
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from kills import full_disk_from
from runs import (
    ENVIRONMENT,
    command,
    equal_tensors,
    kill_at,
    log_of,
    pretraining,
    recipe_of,
    write_recipe,
)
from safetensors.torch import load_file
from tiny import write_dream_folder

from softmask.training import curves, run_folder, sources
from softmask.training import run as run_module
from softmask.training.config import Recipe
from softmask.training.run import train
from softmask.training.sweep import sweep
from softmask.training.trainer import SoftMaskTrainer

datasets = pytest.importorskip("datasets", reason="pip install 'softmask[train]'")

SILENT = {"report": lambda _line: None}


def result_of(folder: Path) -> dict[str, torch.Tensor]:
    """The adapter of a finished run, and its soft-mask parameters."""
    assert (folder / "done.json").is_file()
    files = ("adapter_model.safetensors", "soft_mask.safetensors")
    return {k: v for name in files for k, v in load_file(folder / "adapter" / name).items()}


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def unfinished(run: Path, copy: Path) -> Path:
    """A copy of a run as it was before its result was written."""
    shutil.copytree(run, copy)
    (copy / "done.json").unlink()
    shutil.rmtree(copy / "adapter")
    return copy


def refused(*arguments, **more) -> str:
    """The sentence with which a training is refused."""
    with pytest.raises((ValueError, OSError)) as caught:
        train(*arguments, **{**SILENT, **more})
    assert "\n" not in str(caught.value)
    return str(caught.value)


def interrupt_in(update: int, recipe: Recipe, folder: Path, monkeypatch) -> None:
    """A run that gets a Ctrl-C in an update, behind which it stops with a checkpoint."""
    before = SoftMaskTrainer.before_update

    def interrupted(self) -> None:
        before(self)
        if self.state.global_step + 1 == update:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(SoftMaskTrainer, "before_update", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, folder, **SILENT)


# Whose folder it is


@pytest.fixture(scope="module")
def short(settings_of, tmp_path_factory) -> tuple[Recipe, Path]:
    """A run of two updates."""
    folder = tmp_path_factory.mktemp("short")
    recipe = recipe_of(settings_of(folder), steps=2, eval_at_start=False)
    train(recipe, folder / "run", **SILENT)
    return recipe, folder / "run"


def test_a_folder_with_another_run_is_left_alone_without_overwrite(settings, tmp_path) -> None:
    train(recipe_of(settings, steps=2), tmp_path / "run")
    other = dataclasses.replace(recipe_of(settings, steps=2), seed=2)
    with pytest.raises(ValueError, match=r"another recipe \(.+ -> .+\)"):
        train(other, tmp_path / "run")
    train(other, tmp_path / "run", overwrite=True)
    assert json.loads((tmp_path / "run" / "recipe.json").read_text())["seed"] == 2
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("...")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="holds no run"):
            train(other, tmp_path / "mine", overwrite=overwrite)
    assert (tmp_path / "mine" / "thesis.txt").is_file()


def test_a_recipe_among_other_things_makes_no_folder_of_a_run(settings, tmp_path) -> None:
    """Somebody has copied a recipe to where he works, and trains there."""
    recipe, mine = recipe_of(settings, steps=1), tmp_path / "mine"
    (mine / "model").mkdir(parents=True)
    (mine / "model" / "config.json").write_text("{}")
    train(recipe, tmp_path / "run", **SILENT)
    shutil.copy(tmp_path / "run" / "recipe.json", mine)
    for overwrite in (False, True):
        assert "holds no run" in refused(recipe, mine, overwrite=overwrite)
    assert sorted(path.name for path in mine.iterdir()) == ["model", "recipe.json"]
    (tmp_path / "kitchen").mkdir()
    (tmp_path / "kitchen" / "recipe.json").write_text('{"flour": 500}')
    assert "holds no run" in refused(recipe, tmp_path / "kitchen")
    assert (tmp_path / "kitchen" / "recipe.json").read_text() == '{"flour": 500}'
    # Alone it is what is to be trained there.
    (tmp_path / "new").mkdir()
    shutil.copy(tmp_path / "run" / "recipe.json", tmp_path / "new")
    train(recipe, tmp_path / "new", **SILENT)


def test_what_a_run_did_not_write_stays_when_it_begins_anew(settings, tmp_path) -> None:
    run, there = tmp_path / "run", settings["conversations"]["sources"][0]["path"]
    settings["conversations"]["sources"][0]["path"] = str(run / "chats.jsonl")
    assert "there is no file" in refused(recipe_of(settings, steps=1), run)
    # The data that was missing, and a model that no run can have made here yet.
    shutil.copy(there, run / "chats.jsonl")
    (run / "model").mkdir()
    (run / "model" / "notes.txt").write_text("mine")
    (run / "runs" / "other").mkdir(parents=True)
    (run / "runs" / "other" / "done.json").write_text("{}")
    (run / "data.json").write_text('[{"question": "x"}]')
    refused(recipe_of(settings, steps=1), run, device="no-such")
    assert (run / "data.json").read_text() == '[{"question": "x"}]'
    (run / "data.json").unlink()
    train(recipe_of(settings, steps=1), run, **SILENT)
    assert (run / "model" / "notes.txt").read_text() == "mine"
    assert (run / "runs" / "other" / "done.json").is_file()
    train(recipe_of(settings, steps=2), run, overwrite=True, **SILENT)
    assert (run / "chats.jsonl").is_file()
    assert json.loads((run / "done.json").read_text())["steps"] == 2


def test_a_folder_in_which_another_process_trains_is_refused_and_free_when_it_dies(
    settings, tmp_path
) -> None:
    recipe, run = recipe_of(settings, steps=1, eval_at_start=False), tmp_path / "tiny-seed1"
    script = (
        "import sys, pathlib\nfrom softmask.files import locked\n"
        "with locked(pathlib.Path(sys.argv[1]), 'trains'):\n    print('has it', flush=True)\n"
        "    sys.stdin.read()"
    )
    words = [sys.executable, "-c", script, str(run)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "env": ENVIRONMENT}
    with subprocess.Popen(words, **pipes) as other:
        assert other.stdout.readline() == b"has it\n"
        sentence = f"another process trains in {run}"
        assert sentence in refused(recipe, run)
        assert sentence in refused(recipe, run, overwrite=True)
        with pytest.raises(ValueError, match="another process trains in"):
            sweep([recipe], tmp_path, lambda one, folder: train(one, folder, **SILENT))
        other.kill()
    train(recipe, run, **SILENT)
    assert (run / "done.json").is_file()


def test_a_new_run_deletes_all_of_the_old_one_but_the_lock_that_it_holds(
    settings, tmp_path
) -> None:
    train(recipe_of(settings, steps=4, save_every=1, save_limit=None), tmp_path, **SILENT)
    assert (tmp_path / "checkpoint-3").is_dir()
    recipe = recipe_of(settings, steps=1)
    train(recipe, tmp_path, overwrite=True, **SILENT)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-1"]
    assert (tmp_path / ".lock").is_file()


def content_of(run: Path) -> dict[str, bytes]:
    """The files of a folder, but for the lock."""
    files = (path for path in run.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(run)): path.read_bytes() for path in files}


def test_a_run_that_is_to_be_replaced_stays_until_the_new_one_has_been_built(
    short, settings, tmp_path, monkeypatch
) -> None:
    """Misspelt data, a misspelt module, a Ctrl-C while it is built: the old run is as it was."""
    recipe, run = short[0], Path(shutil.copytree(short[1], tmp_path / "run"))
    (run / "runs" / "Nov30").mkdir(parents=True)
    (run / "runs" / "Nov30" / "events.out.tfevents.1").write_text("a log for tensorboard")
    (run / "notes.txt").write_text("mine")
    before = content_of(run)
    no_such = settings["conversations"] | {"sources": [{"path": "chat.jsonl"}]}
    data = recipe_of(settings | {"conversations": no_such}, steps=1)
    module = recipe_of(settings | {"adapter": {"target_modules": ["q_prj"]}}, steps=1)
    for wrong, word in ((data, "chat.jsonl"), (module, "q_prj")):
        said: list[str] = []
        assert word in refused(wrong, run, overwrite=True, report=said.append)
        assert said == [f"the earlier run in {run} is kept as it was"]
        assert content_of(run) == before
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "build", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(recipe, run, overwrite=True, report=said.append)
    assert said[1:] == [f"the earlier run in {run} is kept as it was"]
    assert content_of(run) == before
    train(recipe, run, report=said.append)
    assert "is finished" in said[-1]
    train(dataclasses.replace(recipe, seed=2), run, overwrite=True, **SILENT)
    assert not list(run.glob("earlier-run*"))
    assert not list(run.glob("runs/*/events*"))
    assert (run / "notes.txt").is_file()


def test_wherever_a_kill_hits_a_run_that_is_being_replaced_the_next_start_has_it_back(
    short, tmp_path, monkeypatch
) -> None:
    """Behind each rename, of the old run's files out of the way or back, nothing more is done."""
    recipe, whole = short
    other = dataclasses.replace(recipe, seed=2)
    before, renamed, killed_at = content_of(whole), 0, 1
    replace, put_back = Path.replace, run_folder.put_back

    def killed(*_: object) -> None:
        raise MemoryError

    def counted(path: Path, target: Path) -> Path:
        nonlocal renamed
        done = replace(path, target)
        renamed += "earlier-run" in f"{path}{target}"
        if renamed == killed_at:
            killed()
        return done

    def put_back_alive(run: Path) -> bool:
        return renamed != killed_at and put_back(run)

    while True:
        run, renamed = Path(shutil.copytree(whole, tmp_path / str(killed_at))), 0
        with monkeypatch.context() as patch:
            patch.setattr(run_module, "build", killed)
            patch.setattr(Path, "replace", counted)
            patch.setattr(run_folder, "put_back", put_back_alive)
            with pytest.raises(MemoryError):
                train(other, run, overwrite=True, **SILENT)
        if renamed < killed_at:
            break
        assert "holds a run of another recipe (seed 1 -> 2)" in refused(other, run)
        assert content_of(run) == before
        killed_at += 1
    assert killed_at > 2 * len([path for path in whole.iterdir() if path.name != ".lock"])


def test_fewer_epochs_than_a_run_has_made_are_refused_and_leave_it_finished(
    settings, tmp_path
) -> None:
    """38 rows for training, two an update: an update is a 19th of an epoch."""
    settings["train"].pop("steps")
    changes = {"eval_at_start": False, "eval_every": 100, "save_every": 100, "log_every": 3}
    lengths = (4 / 19, 3 / 19, 5 / 19)
    recipe, shorter, longer = (recipe_of(settings, epochs=e, **changes) for e in lengths)
    train(recipe, tmp_path, **SILENT)
    files = [tmp_path / name for name in ("done.json", "recipe.json")]
    before = [file.read_bytes() for file in files]
    assert "has made 4 updates already, more than 3: ask for more" in refused(shorter, tmp_path)
    assert [file.read_bytes() for file in files] == before
    train(longer, tmp_path, **SILENT)
    assert json.loads(files[0].read_text())["steps"] == 5


# Data that has changed


def test_an_adapter_is_no_base_of_another_one(settings, tmp_path) -> None:
    first = train(recipe_of(settings, steps=1), tmp_path / "first", **SILENT)
    settings["model"]["path"] = str(first)
    sentence = refused(recipe_of(settings, steps=1), tmp_path / "second")
    assert f"model.path {first} is an adapter" in sentence
    assert "export it first" in sentence


def test_a_run_on_another_base_is_refused(settings, tmp_path) -> None:
    base = write_dream_folder(tmp_path / "base", chat=True, max_position_embeddings=1024)
    settings["model"]["path"] = str(base)
    train(recipe_of(settings), tmp_path / "run")
    (tmp_path / "run" / "done.json").unlink()
    write_dream_folder(base, chat=True, seed=1, max_position_embeddings=1024)
    with pytest.raises(ValueError, match=r"base checkpoint .* \(weights\) is not what it was"):
        train(recipe_of(settings), tmp_path / "run")


def test_chats_that_changed_since_the_run_began_are_refused_by_the_name_of_their_file(
    settings, chats, tmp_path
) -> None:
    folder, run = tmp_path / "chats", tmp_path / "run"
    folder.mkdir()
    first, second = folder / "a.jsonl", folder / "b.jsonl"
    shutil.copy(chats, first)
    shutil.copy(chats, second)
    settings["conversations"]["sources"][0]["path"] = str(folder)
    recipe = recipe_of(settings, steps=1)
    train(recipe, run, **SILENT)
    (run / "done.json").unlink()
    content = second.read_text()
    second.write_text(content.replace("a", "e", 1))
    assert str(second) in refused(recipe, run)
    second.unlink()
    assert str(second) in refused(recipe, run)
    second.write_text(content)
    shutil.copy(chats, folder / "c.jsonl")
    assert "c.jsonl" in refused(recipe, run)
    (folder / "c.jsonl").unlink()
    train(recipe, run, **SILENT)
    second.unlink()
    train(recipe, run, **SILENT)  # what is finished needs its data no more
    # More updates of changed data are refused, and the run stays finished.
    before = [(run / name).read_bytes() for name in ("done.json", "recipe.json")]
    refused(recipe_of(settings, steps=3), run)
    assert [(run / name).read_bytes() for name in ("done.json", "recipe.json")] == before
    train(recipe, run, **SILENT)


def test_a_text_that_changed_since_the_run_began_is_refused_by_its_name(tmp_path) -> None:
    settings, run = pretraining(tmp_path), tmp_path / "run"
    settings["train"].pop("stages")
    recipe = recipe_of(settings, steps=1)
    train(recipe, run, **SILENT)
    (run / "done.json").unlink()
    with (tmp_path / "stories.txt").open("a") as file:
        file.write(" More.")
    assert str(tmp_path / "stories.txt") in refused(recipe, run)


def test_a_base_whose_chat_template_changed_since_is_refused(settings, tmp_path) -> None:
    base, run = write_dream_folder(tmp_path / "base", chat=True), tmp_path / "run"
    settings["model"]["path"] = str(base)
    recipe = recipe_of(settings, steps=1)
    train(recipe, run, **SILENT)
    (run / "done.json").unlink()
    file = base / "tokenizer_config.json"
    file.write_text(file.read_text().replace("assistant", "model"))
    assert "tokenizer_config.json" in refused(recipe, run)


def test_a_data_set_on_the_hub_stays_at_the_commit_with_which_the_run_began(
    settings, base, chats, tmp_path, monkeypatch
) -> None:
    """The Hub is not asked again, so that it may have moved on, or be out of reach."""
    rows = datasets.Dataset.from_json(str(chats), cache_dir=str(tmp_path / "datasets"))
    asked = []

    def load(path, subset, *, revision, streaming):
        asked.append(revision)
        return datasets.DatasetDict(train=rows)

    commits = iter(["1" * 40])
    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(
        sources.HfApi, "dataset_info", lambda *_, **__: SimpleNamespace(sha=next(commits))
    )
    settings["conversations"]["sources"][0]["path"] = "owner/name"
    recipe = recipe_of(settings, steps=1)
    train(recipe, tmp_path / "run", **SILENT)
    (tmp_path / "run" / "done.json").unlink()
    shutil.rmtree(tmp_path / "cache")
    train(recipe, tmp_path / "run", **SILENT)
    assert asked == ["1" * 40] * 2


# Going on between two lines of the log


def test_a_line_of_the_log_covers_what_it_would_in_an_uninterrupted_run(settings, tmp_path) -> None:
    """Lines after updates 1 and 4, and from the checkpoint after update 2 on, as after a kill."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    rare = {"log_every": 4, "save_every": 2, "eval_every": 100, "eval_at_start": False}
    recipe = recipe_of(settings, steps=6, **rare)
    train(recipe, whole, **SILENT)
    unfinished(whole, cut)
    for step in (4, 6):
        shutil.rmtree(cut / f"checkpoint-{step}")
    train(recipe, cut, **SILENT)
    assert [line["step"] for line in log_of(whole) if "loss" in line] == [1, 4]
    assert log_of(cut) == log_of(whole)
    ends = [(run / "log.jsonl").read_text().splitlines()[-1] for run in (whole, cut)]
    means = [json.loads(line)["train_loss"] for line in ends]
    assert means[0] == means[1]


def test_the_seconds_of_the_log_go_on_where_the_run_was(short, tmp_path) -> None:
    """As if the first two updates had taken an hour, and a third one had not come to its end."""
    (recipe, whole), run = short, tmp_path / "run"
    shutil.copytree(whole, run)
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    slow = [line | {"seconds": 1800.0 * line["step"]} for line in lines]
    slow.append({"step": 3, "seconds": 9000.0, "loss": 1.0})
    (run / "log.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in slow))
    longer = dataclasses.replace(recipe.train, steps=3)
    train(dataclasses.replace(recipe, train=longer), run, **SILENT)
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert log[: len(lines)] == slow[:-1]
    assert all(3600 <= line["seconds"] < 9000 for line in log[len(lines) :])


# The best checkpoint


def test_the_best_checkpoint_is_kept_and_is_the_result(settings, tmp_path) -> None:
    """With a rate that wrecks the model the best checkpoint is an early one."""
    recipe = recipe_of(settings, learning_rate=2.0, keep_best=True, save_limit=2, clip=1e6)
    result = train(recipe, tmp_path / "run")
    done = json.loads((tmp_path / "run" / "done.json").read_text())
    evaluations = {
        line["step"]: line["eval_loss"] for line in log_of(tmp_path / "run") if "eval_loss" in line
    }
    saved = {step: loss for step, loss in evaluations.items() if step}
    assert done["best_step"] == min(saved, key=saved.get)
    best = tmp_path / "run" / f"checkpoint-{done['best_step']}"
    assert equal_tensors(best / "soft_mask.safetensors", result / "soft_mask.safetensors")
    assert equal_tensors(best / "adapter_model.safetensors", result / "adapter_model.safetensors")
    assert len(list((tmp_path / "run").glob("checkpoint-*"))) == 2


def test_the_best_one_is_found_where_the_run_was_moved_to(settings, tmp_path) -> None:
    recipe = recipe_of(settings, learning_rate=2.0, keep_best=True, clip=1e6)
    train(recipe, tmp_path / "run", **SILENT)
    expected = result_of(tmp_path / "run")
    moved = unfinished(tmp_path / "run", tmp_path / "moved")
    shutil.rmtree(tmp_path / "run")
    train(recipe, moved, **SILENT)
    assert same(result_of(moved), expected)
    best = json.loads((moved / "done.json").read_text())["best_step"]
    assert best < 8
    assert equal_tensors(
        moved / f"checkpoint-{best}" / "adapter_model.safetensors",
        moved / "adapter" / "adapter_model.safetensors",
    )


def test_the_best_is_the_best_of_the_checkpoints_where_there_are_more_evaluations(
    settings, tmp_path
) -> None:
    """The model gets worse: the best of all evaluations is one that no checkpoint goes with."""
    settings["conversations"]["validation_samples"] = 4  # enough to tell which is worse
    changes = {"learning_rate": 2.0, "clip": 1e6, "eval_every": 1, "save_every": 4}
    train(recipe_of(settings | {"seed": 3}, keep_best=True, **changes), tmp_path, **SILENT)
    losses = {line["step"]: line["eval_loss"] for line in log_of(tmp_path) if "eval_loss" in line}
    assert min(losses[1], losses[2], losses[3]) < losses[4] < losses[8]
    assert json.loads((tmp_path / "done.json").read_text())["best_step"] == 4
    best = load_file(tmp_path / "checkpoint-4" / "adapter_model.safetensors")
    assert same(best, load_file(tmp_path / "adapter" / "adapter_model.safetensors"))


@pytest.mark.long  # two trainings
def test_a_checkpoint_of_ctrl_c_is_no_candidate_for_the_best(
    settings, tmp_path, monkeypatch
) -> None:
    """The model gets worse: the uninterrupted run, which has none there, ends with update 4."""
    settings["conversations"]["validation_samples"] = 4  # enough to tell which is worse
    changes = {"learning_rate": 2.0, "clip": 1e6, "eval_every": 1, "save_every": 4}
    recipe = recipe_of(settings | {"seed": 3}, keep_best=True, **changes)
    interrupt_in(3, recipe, tmp_path, monkeypatch)
    assert (tmp_path / "checkpoint-3").is_dir()
    train(recipe, tmp_path, **SILENT)
    losses = {line["step"]: line["eval_loss"] for line in log_of(tmp_path) if "eval_loss" in line}
    assert losses[3] < losses[4] < losses[8]
    assert json.loads((tmp_path / "done.json").read_text())["best_step"] == 4


# Damage


@pytest.fixture(scope="module")
def finished(settings_of, tmp_path_factory) -> tuple[Recipe, Path]:
    """A run with a moving average and all of its checkpoints: after updates 2, 4 and 6."""
    folder = tmp_path_factory.mktemp("finished")
    settings = settings_of(folder)
    settings["conversations"]["validation_samples"] = 6  # so many that it gets better to its end
    recipe = recipe_of(settings, steps=6, ema=0.9, save_limit=None, keep_best=True)
    train(recipe, folder / "run", **SILENT)
    return recipe, folder / "run"


def test_a_checkpoint_that_a_kill_cut_off_is_passed_over(settings, tmp_path) -> None:
    whole = train(recipe_of(settings), tmp_path / "whole")
    cut = tmp_path / "cut"
    train(recipe_of(settings), cut)
    (cut / "done.json").unlink()
    (cut / "checkpoint-8" / "complete.json").unlink()
    (cut / "checkpoint-8" / "optimizer.pt").write_bytes(b"half")
    result = train(recipe_of(settings), cut)
    assert equal_tensors(whole / "adapter_model.safetensors", result / "adapter_model.safetensors")
    assert (cut / "checkpoint-8" / "complete.json").is_file()


@pytest.mark.parametrize(
    "name",
    [
        "optimizer.pt",
        pytest.param("adapter_model.safetensors", marks=pytest.mark.slow),
        pytest.param("ema.safetensors", marks=pytest.mark.slow),
        pytest.param("rng_state.pth", marks=pytest.mark.slow),
        "trainer_state.json",
        "complete.json",
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_run_goes_on_from_the_one_before(
    finished, tmp_path, name
) -> None:
    recipe, whole = finished
    run = unfinished(whole, tmp_path / "run")
    file = run / "checkpoint-6" / name
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    said: list[str] = []
    train(recipe, run, report=said.append)
    assert f"{file} is damaged" in said[0]
    assert "from update 4 of 6" in said
    assert same(result_of(run), result_of(whole))
    assert log_of(run) == log_of(whole)


def test_one_wrong_byte_or_a_file_that_is_gone_is_damage_too(finished, tmp_path) -> None:
    recipe, whole = finished
    run = unfinished(whole, tmp_path / "run")
    flipped, gone = (run / f"checkpoint-{step}" for step in (6, 4))
    content = bytearray((flipped / "soft_mask.safetensors").read_bytes())
    content[-1] ^= 1
    (flipped / "soft_mask.safetensors").write_bytes(content)
    (gone / "scheduler.pt").unlink()
    said: list[str] = []
    train(recipe, run, report=said.append)
    assert "soft_mask.safetensors is damaged" in said[0]
    assert "scheduler.pt is missing" in said[1]
    assert "from update 2 of 6" in said
    assert same(result_of(run), result_of(whole))


def test_a_best_checkpoint_that_is_damaged_is_made_again(finished, tmp_path) -> None:
    """The last one is whole, but the run could not end with the best."""
    recipe, whole = finished
    run = unfinished(whole, tmp_path / "run")
    best = json.loads((whole / "done.json").read_text())["best_step"]
    assert best == 6
    shutil.rmtree(run / "checkpoint-4")  # so that the one before needs no other
    (run / f"checkpoint-{best}" / "ema.safetensors").write_bytes(b"")
    train(recipe, run, **SILENT)
    assert same(result_of(run), result_of(whole))


def test_where_no_checkpoint_is_whole_the_run_is_refused_and_nothing_deleted(
    finished, tmp_path
) -> None:
    recipe, whole = finished
    run = unfinished(whole, tmp_path / "run")
    for step in (2, 4, 6):
        (run / f"checkpoint-{step}" / "optimizer.pt").write_bytes(b"")
    sentence = refused(recipe, run)
    assert "no whole checkpoint" in sentence
    assert "checkpoint-6/optimizer.pt is damaged" in sentence
    assert len(list(run.glob("checkpoint-*"))) == 3


def test_a_last_line_of_the_log_that_a_kill_cut_off_is_dropped(finished, tmp_path) -> None:
    recipe, whole = finished
    run = unfinished(whole, tmp_path / "run")
    shutil.rmtree(run / "checkpoint-6")
    lines = (whole / "log.jsonl").read_text().splitlines(keepends=True)
    (run / "log.jsonl").write_text("".join(lines[:8]) + lines[8][:20])
    train(recipe, run, **SILENT)
    assert log_of(run) == log_of(whole)


def test_a_damaged_line_within_the_log_is_named(finished, tmp_path) -> None:
    recipe, whole = finished
    run = unfinished(whole, tmp_path / "run")
    lines = (whole / "log.jsonl").read_text().splitlines(keepends=True)
    (run / "log.jsonl").write_text(lines[0] + lines[1][:20] + lines[2] + "".join(lines[3:]))
    assert f"{run / 'log.jsonl'}, line 2" in refused(recipe, run)


# Full disks


@pytest.mark.slow  # three processes; places of a full disk are tried one by one below
def test_a_full_disk_fails_the_run_and_leaves_the_last_good_checkpoint(
    settings, tmp_path, monkeypatch
) -> None:
    """A limit on the size of files stands for the full disk: writes fail in their middle."""
    path = write_recipe(settings, tmp_path / "recipe.yaml")
    whole = train(recipe_of(settings), tmp_path / "whole")
    out = tmp_path / "run"
    kill_at(3, path, out)
    good = {p.name for p in out.glob("checkpoint-*") if (p / "complete.json").is_file()}
    assert "checkpoint-2" in good

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    # Coverage could not write its own file either.
    monkeypatch.delitem(ENVIRONMENT, "COVERAGE_PROCESS_CONFIG", raising=False)
    full = command("train", path, "--out", out, "--device", "cpu", cwd=tmp_path, preexec_fn=limit)
    assert full.returncode == 2, full.stderr
    error = full.stderr.strip().splitlines()[-1]
    assert error.startswith("softmask: error: the checkpoint")
    assert "cannot be written" in error
    left = {p.name for p in out.glob("checkpoint-*")}
    assert good <= left
    assert all((out / name / "complete.json").is_file() for name in left)
    again = command("train", path, "--out", out, "--device", "cpu", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    # Not to the bit: this process may have another number of threads.
    name = "adapter_model.safetensors"
    torch.testing.assert_close(load_file(whole / name), load_file(out / "adapter" / name))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        pytest.param("data.json.partial", "data.json", marks=pytest.mark.slow),
        ("log.jsonl", "log.jsonl"),
        pytest.param("checkpoint-2", "checkpoint-2", marks=pytest.mark.slow),
        pytest.param("complete.json.partial", "checkpoint-2", marks=pytest.mark.long),
        ("adapter.new", "adapter.new"),
        pytest.param("curves.png.partial", "curves.png", marks=pytest.mark.long),
        pytest.param("done.json.partial", "done.json", marks=pytest.mark.slow),
    ],
)
def test_wherever_the_disk_fills_up_one_sentence_names_the_file_and_nothing_half_is_left(
    short, tmp_path, name, says, monkeypatch
) -> None:
    if says == "curves.png":
        monkeypatch.setattr(run_module, "draw_curves", curves.draw_curves)
    (recipe, whole), run = short, tmp_path / "run"
    with full_disk_from(name):
        assert says in refused(recipe, run)
    assert not [path for path in run.rglob("*") if path.name.endswith((".partial", ".new"))]
    assert all((path / "complete.json").is_file() for path in run.glob("checkpoint-*"))
    log = (run / "log.jsonl").read_text() if (run / "log.jsonl").is_file() else ""
    assert all(json.loads(line) for line in log.splitlines())
    train(recipe, run, **SILENT)
    assert same(result_of(run), result_of(whole))
    assert log_of(run) == log_of(whole)


def test_a_disk_that_fills_up_under_the_cache_is_one_sentence_that_says_whose_it_is(
    settings, tmp_path
) -> None:
    recipe = recipe_of(settings, steps=1)
    with full_disk_from(".tmp"):
        assert "cannot write to the cache" in refused(recipe, tmp_path / "run")
    assert not list((tmp_path / "cache" / "conversations").iterdir())
    train(recipe, tmp_path / "run", **SILENT)


def test_a_disk_that_fills_up_under_a_whole_model_leaves_the_last_checkpoint(
    settings, tmp_path
) -> None:
    """All weights, and the tokenizer's own writer, whose errors have no class of their own."""
    recipe = recipe_of(settings | {"adapter": None}, steps=2, eval_at_start=False)
    for name in ("model.new", "model.new/tokenizer_config.json"):
        with full_disk_from(name):
            assert "model.new cannot be written" in refused(recipe, tmp_path)
        assert not (tmp_path / "model.new").exists()
        assert (tmp_path / "checkpoint-2" / "complete.json").is_file()
    assert train(recipe, tmp_path, **SILENT) == tmp_path / "model"
