"""Sources of chats: json, jsonl and parquet files, folders of them, and data sets on the Hub.

Every source becomes a `SourceSplit` for each of its splits, which yields `SourceRow`s: the id of a
row, and its chat, or None where that is incomplete. What is wrong with a source is one sentence.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import itertools
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
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

from ..files import expand_home
from .config import SourceConfig

if TYPE_CHECKING:
    from datasets import Dataset

BATCH = 1000
SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz", ".parquet")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
SURROGATE = re.compile("[\ud800-\udfff]")
COMMIT = re.compile(r"[0-9a-f]{40}")
ROLES = {"human": "user", "user": "user", "assistant": "assistant", "system": "system"}
WHERE = "softmask:where"  # the column with a row's id in our own files; no data set has it
# (base error of the HTTP client, OSError): the client is httpx or httpx2, by version of the hub.
HUB_ERRORS = HfHubHTTPError.__bases__

Messages = list[dict[str, str | None]]
SourceRow = tuple[str, Messages | None]  # id of the row, its chat; None: incomplete


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
        if source.path.endswith(SUFFIXES) or not HUB_ID.fullmatch(source.path):
            raise ValueError(
                f"there is no file or folder {path}, and it is no Hub id (owner/name) either"
            )
        return ResolvedSource(source, {}, {"commit": _commit(source)})
    for name in ("subset", "revision"):
        if getattr(source, name) is not None:
            raise ValueError(f"{path} is a local source: a {name} has no meaning there")
    files = _folder_files(path, report) if path.is_dir() else {"train": [path]}
    for file in itertools.chain.from_iterable(files.values()):
        if not file.name.endswith(SUFFIXES):
            raise ValueError(f"{file} is of no known kind: give {', '.join(SUFFIXES)}")
    identity = {f"{split}/{f.name}": file_digest(f) for split in files for f in files[split]}
    return ResolvedSource(source, files, identity)


def _folder_files(folder: Path, report: Callable[[str], None]) -> dict[str, list[Path]]:
    """Files by split, as their names begin; where none names a split, all are for training."""
    found = sorted(f for f in folder.iterdir() if f.is_file() and f.name.endswith(SUFFIXES))
    if not found:
        raise ValueError(
            f"{folder} holds no {', '.join(SUFFIXES)} files: give the folder that does"
        )
    splits = {
        split: [f for f in found if f.name.startswith(split)]
        for split in ("train", "validation", "test")
    }
    splits = {split: files for split, files in splits.items() if files}
    if not splits:
        return {"train": found}
    _check_splits(str(folder), splits)
    named = set(itertools.chain.from_iterable(splits.values()))
    rest = [f.name for f in found if f not in named]
    if rest:
        report(f"{folder}: not read, as their names begin with no split: {', '.join(rest)}")
    return splits


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
            f"{path} is not here and cannot be read from the Hub ({_first_line(error)}): check the "
            "network, give local files, or set revision to a commit whose rows are in the cache"
        ) from error
    except (ValueError, RuntimeError) as error:
        # An unknown or missing subset, or a script in place of data: datasets says which.
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} cannot be loaded, check its subset ({reason})") from error


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# From a source to rows.


class SourceSplit(NamedTuple):
    """One split of a source. Ids of rows without one of their own begin with `name`."""

    source: SourceConfig
    name: str
    data: Any  # Dataset or IterableDataset

    def row(self, number: int | str, row: dict[str, Any]) -> SourceRow:
        where = row.get(WHERE, f"{self.name}:{number}")
        return where, _messages(self.source, where, row)


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
            split: SourceSplit(source, f"{source.path}:{split}", splits[split]) for split in splits
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
        for part in rows.values():
            if len(part.data):
                _check_columns(part.source, part.name, part.data.column_names)
    return rows["train"], rows.get("validation", rows.get("test"))


def _read_file(path: Path, source: SourceConfig) -> Iterator[SourceRow]:
    parquet = path.name.endswith(".parquet")
    for number, row in _read_parquet(path, source) if parquet else _read_json(path):
        where = f"{path}:{number}"
        yield where, _messages(source, where, row)


def _read_json(path: Path) -> Iterator[tuple[int, Any]]:
    """Numbered objects of a list (which memory holds), or of lines (which it does not)."""
    where = str(path)
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            if ".jsonl" not in path.suffixes:
                values = json.load(file)
                values = values.get("data") if isinstance(values, dict) else values
                if not isinstance(values, list):
                    raise ValueError(f'{path}: expected a list of objects, or {{"data": [...]}}')
                yield from enumerate(values, 1)
                return
            for number, line in enumerate(file, 1):
                where = f"{path}:{number}"
                if line.strip():
                    yield number, json.loads(line)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{where} is no JSON ({error}): correct it; a file of one object a line ends in .jsonl"
        ) from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged ({error}): copy it again") from error


def _read_parquet(path: Path, source: SourceConfig) -> Iterator[tuple[int, Any]]:
    import pyarrow as pa
    from pyarrow import parquet

    numbers = itertools.count(1)
    try:
        with parquet.ParquetFile(path) as file:
            _check_columns(source, str(path), file.schema_arrow.names)
            for batch in file.iter_batches(BATCH, columns=list(_wanted(source))):
                for row in batch.to_pylist():
                    yield next(numbers), row
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} is damaged ({_first_line(error)}): copy it again") from error


def _wanted(source: SourceConfig) -> tuple[str, ...]:
    if source.prompt_column is None or source.response_column is None:
        return (source.messages_column,)
    return source.prompt_column, source.response_column


def _check_columns(source: SourceConfig, where: str, there: Iterable[str]) -> None:
    for name in _wanted(source):
        if name not in there:
            raise ValueError(
                f"{where} has no column {name!r} but {', '.join(there)}: set messages_column, or "
                "prompt_column and response_column"
            )


def _messages(source: SourceConfig, where: str, row: Any) -> Messages | None:
    """The chat as role and content, roles under our names; None where it is incomplete."""
    if not isinstance(row, dict):
        raise ValueError(f"{where}: expected an object, found {type(row).__name__}")
    _check_columns(source, where, row)
    values = [row[name] for name in _wanted(source)]
    if len(values) == 2:
        roles = ("user", "assistant")
        chat = [{"role": r, "content": c} for r, c in zip(roles, values, strict=True)]
    else:
        chat = [] if values[0] is None else values[0]
    if not isinstance(chat, list):
        raise ValueError(f"{where}: expected a list of messages, found {type(chat).__name__}")
    messages = [_message(where, message) for message in chat]
    return messages if _complete(messages) else None


def _message(where: str, message: Any) -> dict[str, str | None]:
    if not isinstance(message, dict) or not {"role", "content"} <= set(message):
        keys = f"the keys {', '.join(message)}" if isinstance(message, dict) else repr(message)
        raise ValueError(f"{where}: a message must have the keys role and content, not {keys}")
    role, content = ROLES.get(str(message["role"]).lower()), message["content"]
    if role is None:
        raise ValueError(f"{where}: unknown role {message['role']!r}; known: {', '.join(ROLES)}")
    if not isinstance(content, str | None):
        raise ValueError(f"{where}: content must be text, not {type(content).__name__}")
    if content is not None and SURROGATE.search(content):
        content = None  # half of a pair: JSON can hold it, UTF-8 and a tokenizer cannot
    return {"role": role, "content": content}


def _complete(messages: Messages) -> bool:
    texts = [message["content"] for message in messages]
    if len(texts) < 2 or messages[-1]["role"] != "assistant" or None in texts:
        return False
    return bool((texts[-1] or "").strip())


def _columns(rows: Iterable[SourceRow]) -> Iterator[dict[str, list[Any]]]:
    for batch in in_batches(rows):
        yield {WHERE: [where for where, _ in batch], "messages": [chat for _, chat in batch]}


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
