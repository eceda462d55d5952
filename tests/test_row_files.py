"""Files as numbered rows, whoever reads them."""

from __future__ import annotations

import gzip
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from softmask.row_files import rows_of

ROWS = [{"a": "1", "b": "x"}, {"a": "2", "b": "y"}]


def written(folder: Path, name: str) -> Path:
    """ROWS in a file of the kind that the name says."""
    path = folder / name
    kind = name.removesuffix(".gz")
    if kind.endswith(".parquet"):
        parquet.write_table(pa.Table.from_pylist(ROWS), folder / kind)
        content = (folder / kind).read_bytes()
    else:
        content = {
            "r.jsonl": b'{"a": "1", "b": "x"}\n{"a": "2", "b": "y"}',
            "r.json": b'{"data": [{"a": "1", "b": "x"}, {"a": "2", "b": "y"}]}',
            "r.csv": b"\xef\xbb\xbfa;b\n1;x\n2;y\n",
            "r.tsv": b"a\tb\r\n1\tx\r\n2\ty\r\n",
        }[kind]
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return path


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize("kind", ["r.jsonl", "r.json", "r.csv", "r.tsv", "r.parquet"])
def test_every_kind_is_read_packed_or_not(tmp_path, kind, packed) -> None:
    path = written(tmp_path, kind + packed)
    assert list(rows_of(path)) == list(enumerate(ROWS, 1))
    if packed:
        path.write_bytes(path.read_bytes()[:-9])
        with pytest.raises(ValueError, match=rf"{kind}.gz is damaged \(.*copy it again"):
            list(rows_of(path))


def test_of_a_table_the_chosen_columns_alone_are_read(tmp_path) -> None:
    path = written(tmp_path, "r.parquet")
    assert list(rows_of(path, lambda there: there[1:])) == [(1, {"b": "x"}), (2, {"b": "y"})]


def test_an_empty_line_is_no_row_and_has_a_number(tmp_path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(b"\n[1]\n\n[2]\n")
    assert list(rows_of(path)) == [(2, [1]), (4, [2])]
