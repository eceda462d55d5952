"""Sources of chats: json, jsonl, csv and parquet files, folders of them, and data sets on the Hub.

Every source becomes a `SourceSplit` for each of its splits, which yields `SourceRow`s: the id of a
row, and its chat, or why it is left out. What is wrong with a source is one sentence.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from huggingface_hub import HfApi
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ..config import read_json
from ..files import expand_home, file_digest
from ..hub.folder import HUB_ID
from ..row_files import BATCH, first_line, rows_of
from .config import SourceConfig
from .messages import TEXT_ROLE, Messages, columns_of, form_of, messages_of

if TYPE_CHECKING:
    from datasets import Dataset

SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz", ".csv", ".tsv", ".parquet")
COMMIT = re.compile(r"[0-9a-f]{40}")
READ = ("train", "validation")  # splits of a source; others are left for a test
# Names of a split for validation, and how those of files begin, as `datasets` and mlx-lm have them.
VALIDATION = ("validation", "valid", "val", "dev")
SPLITS = {
    "train": re.compile("train"),
    "validation": re.compile(f"({'|'.join(VALIDATION)})(?![a-z])"),
    "test": re.compile("test"),
}
# Columns of our own files, which no data set has: a row's id, and why it is left out, or null.
WHERE, LEFT_OUT = "softmask:where", "softmask:left_out"
# What `Dataset.save_to_disk` writes beside its arrow files, and `DatasetDict.save_to_disk` above.
SAVED, SAVED_SPLITS = "state.json", "dataset_dict.json"
# (base error of the HTTP client, OSError): the client is httpx or httpx2, by version of the hub.
HUB_ERRORS = HfHubHTTPError.__bases__

SourceRow = tuple[str, Messages | str]  # id of the row; its chat, or why it is left out


# From a setting to a source that exists.


class ResolvedSource(NamedTuple):
    """A source that was found: its files by split, or none and a commit on the Hub.

    `identity` stands for its content, in the cache's key.
    """

    source: SourceConfig
    files: dict[str, list[Path]]
    identity: dict[str, str]


def resolve_source(source: SourceConfig, report: Callable[[str], None]) -> ResolvedSource:
    """Finds a source's files, or its commit on the Hub; `report` gets lines of progress.

    Raises:
        ValueError: there is no such source, or its files are of no known kind.
    """
    path = expand_home(source.path)
    if not path.exists():
        if source.validation is not None:
            raise ValueError(
                f"{path} is no local source, beside which the file {source.validation} could be "
                "for validation: leave that out"
            )
        if source.path.endswith(SUFFIXES) or not HUB_ID.fullmatch(source.path):
            raise ValueError(
                f"there is no file or folder {path}, and it is no Hub id (owner/name) either"
            )
        return ResolvedSource(source, {}, {"commit": _commit(source)})
    for name in ("subset", "revision"):
        if getattr(source, name) is not None:
            raise ValueError(f"{path} is a local source: a {name} has no meaning there")
    files = _files(path, report)
    _check_splits(str(path), files)
    for name in files:
        if name not in READ:
            report(f"{path}: its split {name} is not read, and so is left for a test")
    files = {name: files[name] for name in READ if name in files}
    if source.validation is not None:
        held_out = expand_home(source.validation)
        if not held_out.exists():
            raise ValueError(f"there is no file or folder {held_out} for validation")
        apart = _files(held_out, report)
        known = [name for name in ("validation", "test", "train") if name in apart]
        if not known:
            _check_splits(str(held_out), apart)
        files = {"train": files["train"], "validation": apart[known[0]]}
        if [_known_digest(f) for f in files["validation"]] == [
            _known_digest(f) for f in files["train"]
        ]:
            raise ValueError(
                f"{held_out} is for validation and holds the same as {path}, so that nothing is "
                "left to train on: give other rows, or none, and some of these are held out"
            )
    identity = {f"{split}/{f.name}": _known_digest(f) for split in files for f in files[split]}
    return ResolvedSource(source, files, identity)


def _files(path: Path, report: Callable[[str], None]) -> dict[str, list[Path]]:
    """The files of a local source, by split."""
    if path.is_dir():
        return _folder_files(path, report)
    if not path.name.endswith(SUFFIXES):
        raise ValueError(f"{path} is of no known kind: give {', '.join(SUFFIXES)}")
    return {"train": [path]}


def _folder_files(folder: Path, report: Callable[[str], None]) -> dict[str, list[Path]]:
    """Files by split, as their names begin; where none names a split, all are for training."""
    if (folder / SAVED).is_file():
        return {"train": _saved_files(folder)}
    if (folder / SAVED_SPLITS).is_file():
        names = [path.parent.name for path in sorted(folder.glob(f"*/{SAVED}"))]
        known = _known_splits(names)
        return {known.get(name, name): _saved_files(folder / name) for name in names}
    found = sorted(f for f in folder.iterdir() if f.is_file() and f.name.endswith(SUFFIXES))
    if not found:
        raise ValueError(
            f"{folder} holds no {', '.join(SUFFIXES)} files: give the folder that does"
        )
    splits = {name: [f for f in found if begins.match(f.name)] for name, begins in SPLITS.items()}
    splits = {split: files for split, files in splits.items() if files}
    if not splits:
        return {"train": found}
    named = set(itertools.chain.from_iterable(splits.values()))
    rest = [f.name for f in found if f not in named]
    if rest:
        report(f"{folder}: not read, as their names begin with no split: {', '.join(rest)}")
    return splits


def _saved_files(folder: Path) -> list[Path]:
    """The files of a data set that `Dataset.save_to_disk` wrote, in its order."""
    state = read_json(folder / SAVED)
    try:
        return [folder / file["filename"] for file in state["_data_files"]]
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{folder / SAVED} names no files: give a folder that save_to_disk wrote"
        ) from error


def _known_splits(names: Collection[str]) -> dict[str, str]:
    """Which of `READ` a split is, by its name in the source."""
    validation = [name for name in VALIDATION if name in names][:1]
    return {"train": "train"} | dict.fromkeys(validation, "validation")


def _check_splits(name: str, splits: Iterable[str]) -> None:
    if "train" not in splits:
        raise ValueError(
            f"{name} has no split 'train' but {', '.join(splits)}: give another source"
        )


def _commit(source: SourceConfig) -> str:
    """The commit that a revision means now. Asks the Hub, unless it is a commit already."""
    if source.revision is not None and COMMIT.fullmatch(source.revision):
        return source.revision
    with hub_errors(source):
        commit = HfApi().dataset_info(source.path, revision=source.revision).sha
    assert commit is not None  # the Hub names it where a single revision is asked for
    return commit


@contextlib.contextmanager
def hub_errors(source: SourceConfig) -> Iterator[None]:
    """Turns what can go wrong with a data set on the Hub into a sentence each."""
    from datasets.exceptions import DatasetNotFoundError, DatasetsError

    path = source.path
    try:
        yield
    except RevisionNotFoundError as error:
        raise ValueError(
            f"{path} has no revision {source.revision!r}: check the branch or tag"
        ) from error
    except (RepositoryNotFoundError, HFValidationError, DatasetNotFoundError) as error:
        if isinstance(error, GatedRepoError) or isinstance(error.__cause__, GatedRepoError):
            what = "is gated: accept its terms on its Hub page, then run `hf auth login`"
        else:
            what = "is no folder here nor a data set on the Hub: check spelling and revision, or, "
            what += "if it is private, run `hf auth login`"
        raise ValueError(f"{path} {what}") from error
    except (*HUB_ERRORS, DatasetsError) as error:
        raise ValueError(
            f"{path} is not here and cannot be read from the Hub ({first_line(error)}): check the "
            "network, give local files, or set revision to a commit whose rows are in the cache"
        ) from error
    except (ValueError, RuntimeError) as error:
        # An unknown or missing subset, or a script in place of data: datasets says which.
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} cannot be loaded, check its subset ({reason})") from error


def _known_digest(path: Path) -> str:
    """The digest of a file that a run looks at more than once before it begins."""
    state = path.stat()
    return _digest(path, state.st_ino, state.st_size, state.st_mtime_ns)


@functools.lru_cache
def _digest(path: Path, *_state: int) -> str:
    return file_digest(path)


# From a source to rows.


class SourceSplit(NamedTuple):
    """One split of a source. Ids of rows without one of their own begin with `name`."""

    source: SourceConfig
    name: str
    data: Any  # Dataset or IterableDataset

    def row(self, number: int | str, row: dict[str, Any]) -> SourceRow:
        where = row.get(WHERE, f"{self.name}:{number}")
        return where, row.get(LEFT_OUT) or messages_of(self.source, where, row)


def open_source(
    resolved: ResolvedSource, number: int, streaming: bool, temporary: Path
) -> tuple[SourceSplit, SourceSplit | None]:
    """Rows for training, and those for validation where the source has a split for it."""
    import datasets

    source = resolved.source
    if not resolved.files:
        commit = resolved.identity["commit"]
        with hub_errors(source):
            splits = datasets.load_dataset(
                source.path, source.subset, revision=commit, streaming=streaming
            )
        _check_splits(source.path, splits)
        rows = {
            split: SourceSplit(source, f"{source.path}:{name}", splits[name])
            for name, split in _known_splits(splits).items()
        }
    else:
        rows = {}
        plain = SourceConfig(source.path)  # our own files have the columns of the default
        for split, files in resolved.files.items():
            read = itertools.chain.from_iterable(_read_file(file, source) for file in files)
            data = write_arrow(temporary / f"source_{number}_{split}", _columns(read))
            data = data.to_iterable_dataset() if streaming else data
            rows[split] = SourceSplit(plain, source.path, data)
    if not streaming:
        if not len(rows["train"].data):
            raise ValueError(f"{source.path} holds no conversations: give another source")
        if source.validation is not None and not len(rows["validation"].data):
            raise ValueError(
                f"{source.validation} holds no conversations for validation: give another file, or "
                "none, and some of the others are held out"
            )
        for part in rows.values():
            if len(part.data):
                columns_of(part.source, part.name, part.data.column_names)
    return rows["train"], rows.get("validation")


def _read_file(path: Path, source: SourceConfig) -> Iterator[SourceRow]:
    is_text = None
    for number, row in _rows_of(path, source):
        where = f"{path}:{number}"
        chat = messages_of(source, where, row)
        if not isinstance(chat, str):
            is_text, before = chat[0]["role"] == TEXT_ROLE, is_text
            if before is not None and is_text != before:
                raise ValueError(
                    f"{where} has the columns {', '.join(row)}: a file holds conversations or "
                    "plain text (a column text), not both; make two of it"
                )
        yield where, chat


def _rows_of(path: Path, source: SourceConfig) -> Iterator[tuple[int, Any]]:
    """Numbered rows of a file; of a table those columns alone that hold the chats."""
    return rows_of(path, lambda there: columns_of(source, str(path), there).all)


def form_of_source(resolved: ResolvedSource) -> str:
    """What a source's rows are taken for, in words; of the Hub nothing is read for it.

    Raises:
        ValueError: as `open_source`, of the first row.
    """
    for path in resolved.files.get("train", []):
        names: list[str] = []  # of a table all, of which a few are read

        def read(there: list[str], path: Path = path, names: list[str] = names) -> Iterable[str]:
            names += there
            return columns_of(resolved.source, str(path), there).all

        for number, row in rows_of(path, read):
            messages_of(resolved.source, f"{path}:{number}", row)
            columns = columns_of(resolved.source, str(path), row)
            rest = [name for name in names or row if name not in columns.all]
            return form_of(columns) + (f"; not read: {', '.join(rest)}" if rest else "")
    return "a data set on the Hub" if not resolved.files else "no rows"


def _columns(rows: Iterable[SourceRow]) -> Iterator[dict[str, list[Any]]]:
    for batch in in_batches(rows):
        chats = [chat for _, chat in batch]
        yield {
            WHERE: [where for where, _ in batch],
            "messages": [None if isinstance(chat, str) else chat for chat in chats],
            LEFT_OUT: [chat if isinstance(chat, str) else None for chat in chats],
        }


def in_batches(values: Iterable[Any]) -> Iterator[list[Any]]:
    values = iter(values)
    while batch := list(itertools.islice(values, BATCH)):
        yield batch


def write_arrow(path: Path, batches: Iterable[dict[str, list[Any]]]) -> Dataset:
    """Writes columns in batches; a memory-mapped data set, outside of the cache of `datasets`."""
    import pyarrow as pa
    from datasets import Dataset

    schemas = {
        "messages": pa.list_(pa.struct({"role": pa.string(), "content": pa.string()})),
        "input_ids": pa.list_(pa.int32()),
        "prompt_length": pa.int32(),
    }
    batches = iter(batches)
    first: dict[str, list[Any]] = next(batches, {"id": []})
    schema = pa.schema({name: schemas.get(name, pa.string()) for name in first})
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as stream:
        for columns in itertools.chain([first], batches):
            stream.write_batch(pa.RecordBatch.from_pydict(columns, schema))
    return Dataset.from_file(str(path))
