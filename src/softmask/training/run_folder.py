"""The folder of a run: whose it is, that one process has it, and whether it is finished.

recipe.json         every setting, as it was resolved
base.json           which base checkpoint it was (fine-tuning)
data.json           which chats or which text, by fingerprint
log.jsonl           a line each `log_every` updates and for each evaluation
checkpoint-100/ ... adapter or weights, soft-mask parameters, optimizer, random state
adapter/ or model/  the result: `softmask generate --adapter runs/mix-seed1231/adapter`
curves.png          the log, drawn
done.json           written last
earlier-run/        what --overwrite replaces, until the new run has been built
.lock               held while a process trains here
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from ..config import read_json, shown
from ..files import LOCK, locked, read_json_lines, write_atomically
from ..hub.folder import kept_update
from ..reporting.words import count
from .checkpoints import checkpoint_of
from .config import RECIPE, Recipe
from .inputs import pin_inputs, pinned
from .listing import DONE
from .run_files import BEGUN, LOG, clear, put_back, set_aside

# What may grow in a run that goes on: how long it is, by whichever setting says so.
LENGTHS = ("train.steps", "train.epochs")
SHOWN = 3  # settings that an error names


@contextlib.contextmanager
def run_folder(
    folder: Path, recipe: Recipe, overwrite: bool, report: Callable[[str], None]
) -> Iterator[None]:
    """Has the folder for this process alone, and for this recipe, which it writes there.

    A start that failed before its first update is forgotten: the corrected one begins anew. The
    same recipe with more updates goes on with the run, and one that does not say how many with as
    many as it has (`with_own_length`).

    Args:
        overwrite: begin anew. The run that is there is set aside until `forget` is called, and put
            back where an error ends the block before, or by the next start where a kill did.
        report: callback for a line, where the run is made longer or an earlier one put back.

    Raises:
        ValueError: another process trains there, the folder holds another run, or no run at all.
    """
    was_here = (folder / LOCK).is_file()
    if not was_here:
        _refuse_others(folder, was_here)
    with locked(folder, "trains"):
        put_back(folder)  # left by a kill
        _refuse_others(folder, was_here)
        try:
            if overwrite:
                set_aside(folder)
            elif (folder / RECIPE).is_file() and not _has_trained(folder):
                clear(folder, BEGUN)
            _write_recipe(folder, with_own_length(folder, recipe), report)
            yield
        except BaseException:
            if put_back(folder):
                report(f"the earlier run in {folder} is kept as it was")
            raise


def _write_recipe(folder: Path, recipe: Recipe, report: Callable[[str], None]) -> None:
    """Writes recipe.json, where the run in the folder is none of another recipe."""
    written = folder / RECIPE
    differing: dict[str, tuple[Any, Any]] = {}
    if written.is_file():
        differing = _differing(folder, recipe)
        if any(not _is_length(name) for name in differing):
            raise ValueError(
                f"{folder} holds a run of another recipe ({_shown(differing)}): name a new "
                "folder with --out, or delete that run with --overwrite"
            )
        if differing:
            _lengthen(folder, recipe, differing, report)
    if not written.is_file() or differing:
        write_atomically(written, json.dumps(recipe.as_mapping(), indent=2) + "\n")


def going_on(folder: Path, recipe: Recipe) -> Recipe:
    """The recipe as `train` will take it: with the length and the commits of a run in the folder.

    It is as it was given where there is no run, or one of another recipe.

    Raises:
        ValueError: a file of the run is damaged.
    """
    if not (folder / RECIPE).is_file() or not _has_trained(folder):
        return recipe
    own = with_own_length(folder, recipe)
    if not all(_is_length(name) for name in _differing(folder, own)):
        return recipe
    return pinned(folder, own)


def with_own_length(folder: Path, recipe: Recipe) -> Recipe:
    """The recipe with the updates of the run in a folder, where it says none itself.

    Else the command of a run, repeated without its --iters, would silently be another run.
    """
    written = folder / RECIPE
    if recipe.train.steps is not None or recipe.train.stages or not written.is_file():
        return recipe
    train = _as_written(read_json(written)).get("train", {})
    if train.get("epochs") != recipe.train.epochs or not isinstance(train.get("steps"), int):
        return recipe
    return dataclasses.replace(
        recipe, train=dataclasses.replace(recipe.train, steps=train["steps"])
    )


def how_finished(folder: Path, result: Path) -> str:
    """What a finished run holds, and how it goes on, in a sentence."""
    steps = read_json(folder / DONE)["steps"]
    return (
        f"{result} is finished, after {count(steps, 'update')}: `{generate_with(result)}` writes "
        "with it, and the same command with --iters N goes on to N updates in all"
    )


def generate_with(result: Path) -> str:
    """The command that writes a text with the result of a run."""
    words = ["softmask", "generate", f"--{result.name}", str(result)]
    family = read_json(result.parent / RECIPE)["model"].get("family")
    if family is not None and result.name == "adapter":  # a model's own config.json says it
        words += ["--family", family]
    return shlex.join(words)


def _has_trained(folder: Path) -> bool:
    """Whether there is anything of a run to lose: a checkpoint, a result or an update's line."""
    if kept_update(folder) or is_finished(folder):
        return True
    log = folder / LOG
    return log.is_file() and any(line.get("step", 0) > 0 for line in read_json_lines(log))


def _as_written(values: Any) -> Any:
    """A recipe of an earlier version, with the settings that have come since."""
    try:
        recipe = Recipe.of(values, RECIPE)
    except ValueError:
        return values  # a setting has gone: it differs
    return recipe.as_mapping()


def _differing(folder: Path, recipe: Recipe) -> dict[str, tuple[Any, Any]]:
    return _differences(_as_written(read_json(folder / RECIPE)), recipe.as_mapping())


def _differences(before: Any, now: Any, name: str = "") -> dict[str, tuple[Any, Any]]:
    """Settings by dotted name that differ: what they were, and what they are to be."""
    if isinstance(before, dict) and isinstance(now, dict):
        pairs = {key: (before.get(key), now.get(key)) for key in {**before, **now}}
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        pairs = {str(i): pair for i, pair in enumerate(zip(before, now, strict=True))}
    else:
        return {} if before == now else {name: (before, now)}
    found: dict[str, tuple[Any, Any]] = {}
    for key, pair in pairs.items():
        found |= _differences(*pair, f"{name}.{key}" if name else key)
    return found


def _shown(differing: dict[str, tuple[Any, Any]]) -> str:
    parts = [f"{name} {shown(old)} -> {shown(new)}" for name, (old, new) in differing.items()]
    more = len(parts) - SHOWN
    return ", ".join(parts[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def _is_length(name: str) -> bool:
    return name in LENGTHS or bool(re.fullmatch(r"train\.stages\.\d+\.steps", name))


def _lengthen(
    folder: Path,
    recipe: Recipe,
    differing: dict[str, tuple[Any, Any]],
    report: Callable[[str], None],
) -> None:
    """Lets a run go on beyond its end.

    Raises:
        ValueError: it has gone further already, a stage before its last one would change, or what
            it was trained on has changed.
    """
    stages = recipe.train.stages
    last = f"train.stages.{len(stages) - 1}.steps"
    earlier = [name for name in differing if name not in (*LENGTHS, last)]
    if earlier:
        raise ValueError(
            f"{folder} holds a run whose stages before the last one have other lengths "
            f"({_shown({name: differing[name] for name in earlier})}): change the last one alone"
        )
    done = kept_update(folder)
    steps = _updates_of(recipe, folder, done)
    if steps is not None and steps < done:
        raise ValueError(
            f"the run in {folder} has made {done} updates already, more than {steps}: ask for "
            "more, or name a new folder with --out"
        )
    pin_inputs(folder, recipe)  # what would be refused later leaves the run finished
    (folder / DONE).unlink(missing_ok=True)
    report(
        f"the run in {folder} goes on ({_shown(differing)}); from here the learning rate is that "
        "of a run of the new length"
    )


def _updates_of(recipe: Recipe, folder: Path, done: int) -> int | None:
    """The updates that a recipe asks for.

    Those of its epochs follow from the passes that the run has logged, after `done` updates; None:
    it has made none.
    """
    train = recipe.train
    if train.stages:
        return sum(stage.steps for stage in train.stages)
    if train.steps is not None or not done:
        return train.steps
    state = read_json(checkpoint_of(folder, done) / TRAINER_STATE_NAME)
    line = next(line for line in reversed(state["log_history"]) if line["step"])
    # Rounded, as the quotient of a whole number may lie just above it.
    return math.ceil(round(train.epochs * line["step"] / line["epoch"], 6))


def _refuse_others(folder: Path, was_here: bool) -> None:
    """A run's folder has its recipe, and its lock or what it has trained.

    Args:
        was_here: a run has had the lock before.
    """
    if not folder.is_dir():
        return
    names = {path.name for path in folder.iterdir()} - {LOCK, f"{RECIPE}.partial"}
    is_run = not names or (RECIPE in names and (was_here or _has_trained(folder)))
    # A recipe that somebody has put into a folder of its own.
    if not is_run and not (names == {RECIPE} and _is_recipe(folder / RECIPE)):
        raise ValueError(f"{folder} is not empty and holds no run: name another folder with --out")


def _is_recipe(path: Path) -> bool:
    try:
        Recipe.of(read_json(path), RECIPE)
    except ValueError:
        return False
    return True


def is_finished(folder: Path) -> bool:
    """Whether the run has come to its end, with everything written."""
    return (folder / DONE).is_file()


def write_done(folder: Path, state: TrainerState, result: Path) -> None:
    """Writes done.json, which marks the run as finished."""
    done = {"steps": state.global_step, "result": result.name}
    if state.best_metric is not None:
        done |= {"best_eval_loss": state.best_metric, "best_step": state.best_global_step}
    write_atomically(folder / DONE, json.dumps(done) + "\n")
