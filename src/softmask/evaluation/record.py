"""The folder of an evaluation: run.json with settings and origin, results.json with the scores.

results.json is written last, atomically, and marks the run as finished.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from ..config import SoftMaskConfig, read_json, soft_mask_to_published
from ..files import LOCK, PARTIAL, file_digest, locked, write_atomically
from ..hub.checkpoints import fingerprint, tokenizer_folder
from ..hub.export import TOKENIZER_FILES
from ..hub.tokenizer_files import TOKENIZER_CONFIG
from ..models.checkpoint import Checkpoint, Source
from ..reporting.result_folder import provenance
from ..rules import KINDS, added
from .config import RESULTS, RUN, EvalConfig, ModelArgs

PACKAGES = (
    *("softmask", "torch", "transformers", "peft", "accelerate", "lm_eval", "datasets"),
    *("tokenizers", "safetensors", "numpy", "math-verify", "sympy", "mauve-text"),
)
# Settings that do not change the scores; the last but for the estimator that draws so many masks
# together.
NOT_OF_SCORES = ("device", "device_map", "mc_batch_size")
# Digests of files that decide the scores: a tokenizer's, those of rules, of tasks and of data.
FILES = ("tokenizer", "rule_files", "task_files", "data_files", "scorer_files")
# What a run makes, the mark of a finished one first.
MADE = (RESULTS, "samples_*.jsonl", "responses.*.jsonl", "calibration.png")
# Types of the parts that are read again; each may be missing or null.
PARTS: dict[str, type] = {
    **dict.fromkeys(("model", "adapter", "soft_mask", "model_args", "evaluation"), dict),
    **dict.fromkeys(("packages", "environment", "seconds_a_sample"), dict),
    **dict.fromkeys(("dtype", "commit", "started"), str),
    "command": list,
}


def settings_of(checkpoint: Checkpoint, args: ModelArgs, **what: Any) -> dict[str, Any]:
    """What decides the scores, in JSON types: model, adapter, soft mask, settings, and `what`."""
    source, soft = checkpoint.source, args.soft_mask(checkpoint.soft_mask, checkpoint.name)
    assert source is not None, "a record is of a checkpoint that was loaded from files"
    left_out = NOT_OF_SCORES[:-1] if args.estimator == "llada" else NOT_OF_SCORES
    values = {name: v for name, v in dataclasses.asdict(args).items() if name not in left_out}
    settings = {
        "model": {"name": checkpoint.name, "fingerprint": fingerprint(source.folder)},
        "tokenizer": _tokenizer(source),
        "adapter": _adapter(source, args),
        "rule_files": _rule_files(args, soft),
        "soft_mask": soft_mask_to_published(soft) if soft else None,
        "dtype": str(checkpoint.model.dtype),
        "model_args": values,
        **what,
    }
    return json.loads(json.dumps(settings))


def _tokenizer(source: Source) -> str | None:
    """A digest of its files, the chat template among them; None: it is in the model's one file."""
    if source.is_gguf:
        return None
    folder = tokenizer_folder(source.folder, source.adapter)
    return digest([folder / name for name in (TOKENIZER_CONFIG, *TOKENIZER_FILES)])


def _rule_files(args: ModelArgs, soft: SoftMaskConfig | None) -> dict[str, str]:
    """Digests of the modules of the rules in use that are not shipped, by kind of rule."""
    in_use = {"commit": args.alg, "feedback": soft and soft.mode, "stopping": args.stop_rule}
    files: dict[str, str] = {}
    for kind in KINDS:
        for rule in added(kind):
            path = Path(rule.function.__code__.co_filename)
            if rule.name == in_use[kind] and path.is_file():  # a cell of a notebook has no file
                files[kind] = file_digest(path)
    return files


def digest(paths: Iterable[Path], root: Path | None = None) -> str:
    """What tells the files among these from others, by content and name, or place below `root`."""
    whole = hashlib.sha256()
    for path in sorted(path for path in paths if path.is_file()):
        name = path.name if root is None else path.relative_to(root).as_posix()
        whole.update(f"{name}:{file_digest(path)}\n".encode())
    return whole.hexdigest()


def _adapter(source: Source, args: ModelArgs) -> dict[str, str] | None:
    if source.adapter is None:
        return None
    name = args.adapter or args.pretrained or source.name
    return {"name": name, "fingerprint": fingerprint(source.adapter)}


@contextlib.contextmanager
def claimed(
    folder: Path, settings: dict[str, Any], overwrite: bool
) -> Iterator[dict[str, Any] | None]:
    """Has the folder of a run for this process alone; gives the results of a finished run.

    `overwrite` deletes an earlier run, and nothing else.

    Raises:
        ValueError: the folder holds something else, or a run that another process is at.
    """
    _require_run_or_nothing(folder)
    if not overwrite:
        # What is finished needs no lock, and may lie where nothing can be written.
        done = _finished(folder, settings)
        if done is not None:
            yield done
            return
    with locked(folder, "evaluates"):
        if overwrite:
            _delete(folder)
        yield _finished(folder, settings)


def _is_left_over(path: Path) -> bool:
    return path.name == LOCK or path.suffix == PARTIAL


def _require_run_or_nothing(folder: Path) -> None:
    """Raises ValueError for a folder that holds anything but a run."""
    # What a kill leaves of the first file that was being written is no run either.
    if not folder.is_dir() or all(map(_is_left_over, folder.iterdir())):
        return
    held = read_json(folder / RUN) if (folder / RUN).is_file() else None
    parts = held if isinstance(held, dict) else {}
    if "command" not in parts or not isinstance(parts.get("model_args"), dict):
        raise ValueError(
            f"{folder} is not empty and holds no evaluation: name another folder with --out"
        )


def _finished(folder: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The results, if there are any. Raises ValueError for a run of other settings."""
    if not has_begun(folder):
        return None
    held = read_run(folder)
    # A run from before a setting existed ran its default.
    for part, unset in (("model_args", ModelArgs()), ("evaluation", EvalConfig(tasks=("",)))):
        if settings.get(part) and held.get(part):
            defaults = json.loads(json.dumps(dataclasses.asdict(unset)))
            held[part] = defaults | held[part]
            settings = settings | {part: defaults | settings[part]}
    # Nor does an older one tell what of the files was read.
    unknown = {name for name in FILES if name not in held}
    other = [n for n, value in settings.items() if n not in unknown and held.get(n) != value]
    if other:
        raise ValueError(
            f"{folder} holds an evaluation with another {other[0]}: name a new folder with "
            "--out, or delete that one with --overwrite"
        )
    return results(folder) if (folder / RESULTS).is_file() else None


def has_begun(folder: Path) -> bool:
    """Whether there is a run that has made anything: one that failed before that holds no folder
    against the corrected command."""
    made = (path for pattern in MADE for path in folder.glob(pattern))
    return (folder / RUN).is_file() and any(path.stat().st_size for path in made)


def _delete(folder: Path) -> None:
    """Deletes a run; its mark first, so that what a kill leaves is no finished run."""
    for pattern in (*MADE, RUN):
        for path in folder.glob(pattern):
            path.unlink()


def results(folder: Path) -> dict[str, Any]:
    """The results of a finished run.

    Raises:
        ValueError: they are damaged.
    """
    path = folder / RESULTS
    found = read_json(path)
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no results: repeat the evaluation with --overwrite")
    return found


def summary(folder: Path) -> list[dict[str, Any]]:
    """The rows of a finished evaluation's summary.

    Raises:
        ValueError: they are damaged.
    """
    rows = results(folder).get("summary")
    if not isinstance(rows, list) or not all(_is_row(row) for row in rows):
        raise ValueError(
            f"{folder / RESULTS} holds no summary of an evaluation: repeat it with --overwrite"
        )
    return rows


def read_run(folder: Path) -> dict[str, Any]:
    """What a record says of an evaluation; an older one may lack parts.

    Raises:
        ValueError: it is damaged, or a part of it is of another type than `evaluate` writes.
    """
    path = folder / RUN
    held = read_json(path)
    wrong = None if isinstance(held, dict) else "it"
    for name, type_ in PARTS.items():
        part = held.get(name) if wrong is None else None
        if part is not None and not isinstance(part, type_):
            wrong = name
    if wrong is None and not all(isinstance(word, str) for word in held.get("command") or []):
        wrong = "command"
    if wrong is not None:
        raise ValueError(
            f"{path} is no record of an evaluation ({wrong} is of another type): repeat the "
            "evaluation with --overwrite"
        )
    return held


def _is_row(row: Any) -> bool:
    names, numbers = ("task", "metric", "filter"), ("value", "stderr", "n", "forwards", "tokens")
    return (
        isinstance(row, dict)
        and all(isinstance(row.get(name), str) for name in names)
        and all(isinstance(row.get(name, ""), int | float | None) for name in numbers)
        and isinstance(row.get("share"), bool | None)
        and row["value"] is not None
        and row["n"] is not None
    )


def is_measured(metric: str, value: Any) -> bool:
    """Whether a sample has a score of this metric.

    The harness' tasks of several lengths have a metric for each, by its number of tokens, and write
    -1 where a sample is of another length.
    """
    return not (metric.isdecimal() and value == -1)


def are_shares(values: Sequence[Any]) -> bool:
    """Whether every sample has so much of a whole, so that their mean is one in per cent."""
    return all(isinstance(v, int | float) and 0 <= v <= 1 for v in values)


def is_share(row: dict[str, Any]) -> bool:
    """Whether a summary's row is shown in per cent; one of before it said so, by its value."""
    told = row.get("share")
    return 0 <= row["value"] <= 1 if told is None else told


def origin(command: Sequence[str]) -> dict[str, Any]:
    """Command, packages, commit, machine and time of a run."""
    # A folder that a broken installation left has no name.
    names = [one.metadata["Name"] for one in metadata.distributions()]
    installed = {name.replace("_", "-").lower() for name in names if name}
    present = [name for name in PACKAGES if name.replace("_", "-") in installed]
    return {
        "command": list(command),
        "packages": {name: metadata.version(name) for name in present},
        **provenance(),
        "started": now(),
    }


def starts_before(folder: Path) -> list[dict[str, Any]]:
    """Time, commit and packages of each earlier start of a run that was stopped."""
    if not has_begun(folder):
        return []
    held = read_json(folder / RUN)
    start = {name: held.get(name) for name in ("started", "commit", "changed_since", "packages")}
    before = held.get("starts_before")
    return [*(before if isinstance(before, list) else []), start]


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def write(path: Path, values: Any, default: Any = None) -> None:
    """Writes JSON atomically."""
    text = json.dumps(values, indent=2, ensure_ascii=False, default=default)
    write_atomically(path, text + "\n")
