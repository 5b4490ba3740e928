"""Tables of every kind, whole and broken."""

from __future__ import annotations

import bz2
import gzip
import lzma
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from cclm.errors import ConfigError, DataError
from cclm.rows.lines import plain_stem, plain_suffix
from cclm.rows.tables import read_rows
from shards.corpora.files import named_files


def rows_of(path: Path, **options: Any) -> Any:
    rows = list(read_rows(path.name, path, **options))
    bad = {place.partition(":")[2]: row for place, row in rows if isinstance(row, DataError)}
    return [row for _, row in rows if not isinstance(row, DataError)], bad


def test_a_tsv_file_splits_at_newlines_and_tabs_only(tmp_path: Path) -> None:
    path = tmp_path / "t.tsv.gz"
    path.write_bytes(gzip.compress('a\tb\nx "y\t\u2028z\r\n1\n\xe4\t\r2'.encode() + b"\n\xff\tb\n"))
    rows, bad = rows_of(path, needed=["a", "b"])
    assert rows == [{"a": 'x "y', "b": "\u2028z"}, {"a": "ä", "b": "\r2"}]
    assert {number: row.got for number, row in bad.items()} == {
        "3": "1 cells, not 2",
        "5": "the byte 0xff at 0 (invalid start byte)",
    }


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize(("name", "options"), [("t.tsv", {"columns": ["a", "b"]}), ("t.tsv", {}), ("t.csv", {})])
def test_blank_lines_are_no_rows(tmp_path: Path, name: str, options: Any, end: str) -> None:
    cell = "," if name == "t.csv" else "\t"
    (tmp_path / name).write_bytes(f"a{cell}b{end}{end}1{cell}2{end}{end}".encode())
    rows, bad = rows_of(tmp_path / name, needed=["a", "b"], **options)
    assert rows[-1] == {"a": "1", "b": "2"} and not bad


def test_quoted_cells_hold_commas_newlines_and_quotes(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes('\ufeffa,b\n"x,\ny","q""q"\nonly\n1,2,3\nlast,\n'.encode() + b"\xff,1\n")
    rows, bad = rows_of(path, needed=["b", "a"])
    assert rows == [{"b": 'q"q', "a": "x,\ny"}, {"b": "", "a": "last"}]
    assert sorted(bad) == ["3", "4", "6"]
    assert (bad["4"].got, bad["6"].got) == ("3 cells, not 2", "the byte 0xff")


@pytest.mark.parametrize("name", ["t.csv", "t.csv.bz2", "t.csv.xz", "t.CSV.GZ"])
def test_every_row_of_a_long_quoted_table_is_counted(tmp_path: Path, name: str) -> None:
    text = "a,b\n" + "".join(f"{n}\n" if n % 7 == 0 else f'{n},"w\n{n}"\n' for n in range(1_000))
    pack = {"bz2": bz2.compress, "xz": lzma.compress, "GZ": gzip.compress}.get(name.rsplit(".")[-1], bytes)
    (tmp_path / name).write_bytes(pack(text.encode()))
    numbered = list(read_rows(name, tmp_path / name, needed=["a"]))
    assert [place for place, _ in numbered] == [f"{name}:{number}" for number in range(2, 1_002)]
    assert [n for n, (_, row) in enumerate(numbered) if isinstance(row, DataError)] == list(range(0, 1_000, 7))


def test_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(b'{"a": 1}\n\n[1]\n{"a"\n\xff\n' + b'{"b": "\\u00e9"}\n{"c": {"en": "x", "en": "y"}}')
    rows, bad = rows_of(path, needed=[])
    assert rows == [{"a": 1}, {"b": "é"}] and sorted(bad) == ["3", "4", "5", "7"]
    assert "the key 'en' twice" in bad["7"].got


def test_parquet_reads_the_needed_columns(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pa.parquet.write_table(pa.table({"a": [1, 2], "b": ["x", None], "c": [0, 0]}), path, row_group_size=1)
    assert rows_of(path, needed=["a", "b"])[0] == [{"a": 1, "b": "x"}, {"a": 2, "b": None}]
    path.write_bytes(path.read_bytes()[:-9])
    rows, bad = rows_of(path, needed=["a", "b"])
    assert rows == [] and bad["1-end"].reason == "file_broken"


def test_a_stream_that_breaks_off_ends_with_one_entry(tmp_path: Path) -> None:
    data = gzip.compress(b"".join(b"row %d\tx\n" % number for number in range(40_000)))
    for suffix in ("tsv", "csv"):
        path = tmp_path / f"t.{suffix}.gz"
        whole = data if suffix == "tsv" else gzip.compress(gzip.decompress(data).replace(b"\t", b","))
        path.write_bytes(whole[: len(whole) // 2])
        rows, bad = rows_of(path, needed=["a"], columns=["a", "b"])
        assert {place: error.reason for place, error in bad.items()} == {f"{len(rows) + 1}-end": "file_broken"}


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.parquet"])
def test_missing_columns_are_one_clear_error(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith("parquet"):
        pa.parquet.write_table(pa.table({"a": [1], "b": [2]}), path)
    else:
        path.write_text("a,b\n1,2\n" if name.endswith("csv") else "a\tb\n1\t2\n")
    with pytest.raises(ConfigError, match=r"expected the columns a, url, got a, b \(missing: url\)"):
        list(read_rows("t", path, needed=["a", "url"]))


def test_a_first_line_of_other_columns_and_other_kinds_of_file(tmp_path: Path) -> None:
    path = tmp_path / "t.tsv"
    path.write_text("1\t2\t3\n")
    with pytest.raises(ConfigError, match="expected the columns a, b, got a first line of 3"):
        list(read_rows("t", path, needed=["a"], columns=["a", "b"]))
    with pytest.raises(ConfigError, match=r"ends in .tsv, .csv, .jsonl, .parquet, .arrow, got t.xml"):
        read_rows("t", tmp_path / "t.xml", needed=[])
    path.write_bytes(b"\xff\n1\n")
    assert rows_of(path, needed=["a"])[1]["1-end"].got == "the byte 0xff at 0 (invalid start byte)"


def test_names_of_files_are_short_and_differ(tmp_path: Path) -> None:
    for name in ("x/a.tsv", "y/a.tsv", "y/b.tsv.gz", "y/.hidden.tsv", "y/c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert list(named_files(tmp_path, [".tsv"])) == ["x/a.tsv", "y/a.tsv", "b.tsv.gz"]
    assert list(named_files([tmp_path / "y" / "*.tsv", tmp_path / "y" / "c.txt"], [".tsv"])) == ["a.tsv", "c.txt"]
    assert (plain_suffix(tmp_path / "a.EN-de.tsv.gz"), plain_stem(tmp_path / "a.en-de.tsv.gz")) == (".tsv", "a.en-de")
    with pytest.raises(ConfigError, match=r"expected a file that ends in .xml, got none, and 5 other files \(.tsv 2, "):
        named_files(tmp_path, [".xml"])
