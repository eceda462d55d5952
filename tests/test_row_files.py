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


@pytest.mark.parametrize("name", ["r.csv", "r.parquet", "r.arrow"])
def test_two_columns_of_one_name_are_an_error(tmp_path, name) -> None:
    path = tmp_path / name
    table = pa.Table.from_arrays([pa.array(["1"])] * 3, names=["a", "b", "a"])
    if name == "r.csv":
        path.write_bytes(b"a,b,a\n1,1,1\n")
    elif name == "r.parquet":
        parquet.write_table(table, path)
    else:
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table)
    with pytest.raises(ValueError, match=rf"{name} has several columns named 'a': rename"):
        list(rows_of(path))
    assert [row["b"] for _, row in rows_of(path, lambda there: ["b"])] == ["1"]


def test_a_quotation_mark_in_a_table_of_tabs_swallows_no_row(tmp_path) -> None:
    path = tmp_path / "r.tsv"
    path.write_bytes(b'a\tb\n"hi\tx\nho\ty"\tz\n')
    for other in (path, path.with_suffix(".csv")):
        other.write_bytes(path.read_bytes())
        with pytest.raises(ValueError, match=":1 has a text in quotes over several columns"):
            list(rows_of(other))
    path.write_bytes(b'a\tb\n"two\nlines"\t"a ""word"""\n')
    assert list(rows_of(path)) == [(1, {"a": "two\nlines", "b": 'a "word"'})]


def test_a_sign_within_quotes_is_not_what_stands_between_columns(tmp_path) -> None:
    path = tmp_path / "r.csv"
    path.write_bytes(b'"a, b";c\n1;2\n')
    assert list(rows_of(path)) == [(1, {"a, b": "1", "c": "2"})]
