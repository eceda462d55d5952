"""Rows of JSON Lines, CSV and Parquet, compressed or not, each with the place that it stands at."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..training.source_files import first_line


def numbered_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Where each row stands, for people, and what it holds: of CSV and Parquet a mapping.

    Raises:
        ValueError: the file is damaged, or a line of it cannot be read.
    """
    if ".parquet" in path.suffixes:
        yield from _parquet(path)
        return
    packed = path.read_bytes()
    try:
        content = gzip.decompress(packed) if path.suffix == ".gz" else packed
        text = content.decode() if ".csv" in path.suffixes else ""
    except (EOFError, gzip.BadGzipFile, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged ({error}): copy it again from its source") from error
    if ".csv" in path.suffixes:
        yield from _csv(path, text)
        return
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise ValueError(f"{path}, line {number}: this cannot be read.") from None
        yield f"{path}, line {number}", row


def _csv(path: Path, text: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Fields in quotes may go over several lines; a row is at its last."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        columns = next(reader, [])
        for row in reader:
            if len(row) != len(columns):
                raise csv.Error
            yield f"{path}, line {reader.line_num}", dict(zip(columns, row, strict=True))
    except csv.Error:
        raise ValueError(f"{path}, line {reader.line_num}: this cannot be read.") from None


def _parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow
    from pyarrow import parquet

    try:
        rows = parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(
            f"{path} is damaged ({first_line(error)}): copy it again from its source"
        ) from error
    for number, row in enumerate(rows, start=1):
        yield f"{path}, row {number}", row
