"""What `softmask eval ppl`, `samples` and `calibration` share: texts, a measure, its record."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .. import launcher
from ..evaluation.config import ModelArgs
from ..files import read_text
from ..reporting.progress import progress
from .eval_options import read_model_args


def measure_and_record(
    args: argparse.Namespace,
    argv: list[str],
    name: str,
    what: dict[str, Any],
    measure: Callable[[Any, ModelArgs, Path], dict[str, Any]],
    table_of: Callable[[dict[str, Any]], Any],
    files: dict[str, Any] | None = None,
) -> int:
    """Measures a checkpoint in one process, keeps a record, and shows the table.

    Args:
        name: of the record's folder, where none is given; its first word names the measure.
        what: the settings of the measure, for the record.
        measure: its result; `batching` in it goes to the record of the run.
        files: digests of further files, by the names in `record.FILES`.

    Raises:
        ValueError: several processes, or what the model and the folder make wrong.
    """
    from rich.console import Console

    from ..evaluation import record
    from ..hub.load import load

    model = read_model_args(args)
    if launcher.processes() > 1:
        raise ValueError(
            f"eval {name.split('-')[0]} runs in one process: start it without a launcher"
        )
    with progress("loading the model"):
        checkpoint = load(**model.to_load)
    folder = args.out or Path("evals") / name
    parts = {name.split("-")[0]: what} | (files or {})
    settings = record.settings_of(checkpoint, model, **parts)
    with record.claimed(folder, settings, args.overwrite) as found:
        if found is None:
            run = {**record.origin(["softmask", *argv]), **settings}
            record.write(folder / record.RUN, run)
            found = measure(checkpoint, model, folder)
            if "batching" in found:
                run["batching"] = found.pop("batching")
            record.write(folder / record.RUN, run | {"finished": record.now()})
            record.write(folder / record.RESULTS, found)
    Console().print(table_of(found))
    print(folder)
    if getattr(args, "json", False):
        print(json.dumps(found))
    return 0


def read_texts(path: Path) -> list[str]:
    """The texts of a file: `text` of each line of a .jsonl, else the whole file as one.

    Raises:
        ValueError: no such file, not UTF-8, or a line without a text.
    """
    content = read_text(path)
    if path.suffix != ".jsonl":
        return [content]
    texts = []
    # Not splitlines(), which also ends a line at characters that a text may hold.
    for number, line in enumerate(content.removesuffix("\n").split("\n"), 1):
        try:
            text = json.loads(line)["text"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f'{path}, line {number}: expected {{"text": "..."}}') from error
        if not isinstance(text, str):
            raise ValueError(f"{path}, line {number}: `text` is no text")
        texts.append(text)
    return texts


def digest_of(texts: Sequence[str]) -> str:
    """What tells these texts from others."""
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()
