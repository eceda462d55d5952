"""Readers of files: numbered rows of json, jsonl, csv, tsv, parquet and arrow as they stand there.

A row of broken form is an error that names its file and its number.
"""

from __future__ import annotations

import csv
import gzip
import itertools
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .config import SourceConfig
from .messages import columns_of

if TYPE_CHECKING:
    from pyarrow import RecordBatch

BATCH = 1000
LONGEST_FIELD = 2**31 - 1  # of a csv file, in characters
BEYOND = "softmask:beyond"  # fields of a row that the header has no names for


def rows_of(path: Path, source: SourceConfig) -> Iterator[tuple[int, Any]]:
    """Numbered rows of a file as they stand there."""
    tables = {".parquet": _read_parquet, ".arrow": _read_arrow}
    if path.suffix in tables:
        return _read_table(path, source, tables[path.suffix])
    return _read_csv(path) if path.suffix in (".csv", ".tsv") else _read_json(path)


def _read_csv(path: Path) -> Iterator[tuple[int, Any]]:
    """Numbered rows of text, by the names in the first line."""
    csv.field_size_limit(LONGEST_FIELD)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            delimiter = "\t" if path.suffix == ".tsv" else _delimiter_of(file.readline())
            file.seek(0)
            rows = csv.DictReader(file, delimiter=delimiter, restkey=BEYOND, strict=True)
            for number, row in enumerate(rows, 1):
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
    return next((sign for sign in ",;\t" if sign in header), ",")


def _read_json(path: Path) -> Iterator[tuple[int, Any]]:
    """Numbered objects of a list (which memory holds), or of lines (which it does not)."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            if ".jsonl" not in path.suffixes:
                hint = "; a file of one object a line ends in .jsonl"
                values = _parsed(file.read(), str(path), hint)
                values = values.get("data") if isinstance(values, dict) else values
                if not isinstance(values, list):
                    raise ValueError(f'{path}: expected a list of objects, or {{"data": [...]}}')
                yield from enumerate(values, 1)
                return
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, _parsed(line, f"{path}:{number}")
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged ({error}): copy it again") from error


def _parsed(text: bytes, where: str, hint: str = "") -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # also endless numbers, and lists in lists
        raise ValueError(f"{where} is no JSON ({error}): correct it{hint}") from error


def _read_table(
    path: Path, source: SourceConfig, read: Callable[[Path, SourceConfig], Iterator[RecordBatch]]
) -> Iterator[tuple[int, Any]]:
    """Numbered rows of a file of columns, with those columns alone that hold the chats."""
    import pyarrow as pa

    try:
        rows = itertools.chain.from_iterable(batch.to_pylist() for batch in read(path, source))
        yield from enumerate(rows, 1)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} is damaged ({first_line(error)}): copy it again") from error


def _read_parquet(path: Path, source: SourceConfig) -> Iterator[RecordBatch]:
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        columns = columns_of(source, str(path), file.schema_arrow.names)
        yield from file.iter_batches(BATCH, columns=list(columns))


def _read_arrow(path: Path, source: SourceConfig) -> Iterator[RecordBatch]:
    import pyarrow as pa

    with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as stream:
        columns = columns_of(source, str(path), stream.schema.names)
        yield from (batch.select(list(columns)) for batch in stream)


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its kind where it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]
