"""Numbered rows of files: JSON, JSON Lines, CSV, TSV, Parquet and Arrow, as they stand there.

Chats to train on, puzzles and data of evaluations are read by this. A row of broken form is an
error that names its file and its number.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import itertools
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .files import not_utf8

if TYPE_CHECKING:
    from pyarrow import RecordBatch

BATCH = 1000
PACKED = ".gz"
LONGEST_FIELD = 2**31 - 1  # of a csv file, in characters
BEYOND = "softmask:beyond"  # fields of a row that the header has no names for

# Which columns of those that a file has are read.
Choice = Callable[[list[str]], Iterable[str]]


def rows_of(path: Path, columns: Choice = lambda there: there) -> Iterator[tuple[int, Any]]:
    """The rows of a file with their numbers from 1 on; the kind is the name's, packed (.gz) or not.

    JSON is a list of rows, or {"data": [...]}, which memory holds; of all else a batch is in memory
    at a time. Lines of JSON are numbered with the empty ones, which are no rows. Rows of csv and
    tsv are texts by the names in the first line, None where a row ends before.

    Args:
        columns: the columns that are read; rows of Parquet and Arrow have no others.

    Raises:
        ValueError: the file is damaged, or a row of it cannot be read.
        OSError: it cannot be opened.
    """
    kind = Path(path.name.removesuffix(PACKED)).suffix
    tables = {".parquet": _parquet, ".arrow": _arrow}
    try:
        if kind in tables:
            yield from _table_rows(path, tables[kind](path, columns))
        elif kind in (".csv", ".tsv"):
            yield from _csv_rows(path, columns, tab=kind == ".tsv")
        else:
            yield from _json_rows(path, lines=kind == ".jsonl")
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise _damaged(path, error) from error


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its kind where it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def _damaged(path: Path, error: BaseException) -> ValueError:
    return ValueError(f"{path} is damaged ({first_line(error)}): copy it again from its source")


def _opened(path: Path) -> gzip.GzipFile | io.BufferedReader:
    return gzip.open(path) if path.suffix == PACKED else path.open("rb")


def _json_rows(path: Path, *, lines: bool) -> Iterator[tuple[int, Any]]:
    with _opened(path) as file:
        if lines:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, _parsed(line, f"{path}:{number}")
            return
        values = _parsed(file.read(), str(path), "; a file of one object a line ends in .jsonl")
        values = values.get("data") if isinstance(values, dict) else values
        if not isinstance(values, list):
            raise ValueError(f'{path}: expected a list of objects, or {{"data": [...]}}')
        yield from enumerate(values, 1)


def _parsed(text: bytes, where: str, hint: str = "") -> Any:
    try:
        return json.loads(text.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise not_utf8(where, error) from error
    except (ValueError, RecursionError) as error:  # also endless numbers, and lists in lists
        raise ValueError(f"{where} is no JSON ({error}): correct it{hint}") from error


def _csv_rows(
    path: Path, columns: Choice, *, tab: bool
) -> Iterator[tuple[int, dict[str, str | None]]]:
    csv.field_size_limit(LONGEST_FIELD)
    try:
        with _opened(path) as packed, io.TextIOWrapper(packed, "utf-8-sig", newline="") as file:
            header = file.readline()
            delimiter = "\t" if tab else _delimiter_of(header)
            file.seek(0)
            rows = csv.DictReader(file, delimiter=delimiter, restkey=BEYOND, strict=True)
            _check_names(path, list(rows.fieldnames or ()), columns)
            for number, row in enumerate(rows, 1):
                if delimiter == "\t" and any(
                    "\t" in text and "\n" in text for text in row.values() if text
                ):
                    # Tables of tabs are often written without quotes: a text that begins with one
                    # would swallow the rows behind it.
                    raise ValueError(
                        f"{path}:{number} has a text in quotes over several columns and lines: "
                        "save it as jsonl, where none can be taken for a row"
                    )
                if any(row.pop(BEYOND, [])):
                    raise ValueError(
                        f"{path}:{number} has more fields than the header has names: put quotes "
                        f"around a text that holds a {delimiter!r}"
                    )
                yield number, row
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} is no table in UTF-8 ({error}): correct it, or save it as jsonl"
        ) from error


def _delimiter_of(header: str) -> str:
    """What stands between columns; spreadsheets write semicolons where a comma is in numbers."""
    outside = "".join(header.split('"')[::2])  # of quotes, within which a sign is text
    return next((sign for sign in ",;\t" if sign in outside), ",")


def _check_names(path: Path, names: list[str], columns: Choice) -> None:
    """Refuses columns of one name, if they are read."""
    # Spreadsheets leave columns without a name behind the last one.
    twice = {name for name in names if name and names.count(name) > 1}
    for name in columns(names) if twice else ():
        if name in twice:
            raise ValueError(f"{path} has several columns named {name!r}: rename all but one")


def _chosen(path: Path, names: list[str], columns: Choice) -> list[str]:
    chosen = list(columns(names))
    _check_names(path, names, lambda _: chosen)
    return chosen


def _table_rows(path: Path, batches: Iterator[RecordBatch]) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow as pa

    try:
        yield from enumerate(itertools.chain.from_iterable(b.to_pylist() for b in batches), 1)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, error) from error


def _parquet(path: Path, columns: Choice) -> Iterator[RecordBatch]:
    from pyarrow import parquet

    # What is not packed pyarrow reads by its name, faster than through Python.
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(_opened(path)) if path.suffix == PACKED else path
        file = stack.enter_context(parquet.ParquetFile(source))
        chosen = _chosen(path, file.schema_arrow.names, columns)
        yield from file.iter_batches(BATCH, columns=chosen)


def _arrow(path: Path, columns: Choice) -> Iterator[RecordBatch]:
    import pyarrow as pa

    with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as stream:
        chosen = _chosen(path, stream.schema.names, columns)
        yield from (batch.select(chosen) for batch in stream)
