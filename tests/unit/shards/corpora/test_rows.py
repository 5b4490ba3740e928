"""Tables of every kind, whole and broken."""

from __future__ import annotations

import bz2
import gzip

import pyarrow as pa
import pyarrow.parquet
import pytest

from cclm.errors import ConfigError
from shards.corpora.files import named_files, numbered_lines, plain_stem, plain_suffix
from shards.corpora.rows import BadRow, read_rows


def rows_of(path, **options):
    rows = list(read_rows(path, **options))
    return [row for _, row in rows if not isinstance(row, BadRow)], {n: r for n, r in rows if isinstance(r, BadRow)}


def test_a_tsv_file_splits_at_newlines_and_tabs_only(tmp_path):
    path = tmp_path / "t.tsv.gz"
    path.write_bytes(gzip.compress('a\tb\nx "y\t\u2028z\r\n1\n\xe4\t\r2'.encode() + b"\n\xff\tb\n"))
    rows, bad = rows_of(path, needed=["a", "b"])
    assert rows == [{"a": 'x "y', "b": "\u2028z"}, {"a": "ä", "b": "\r2"}]
    assert {number: row.why.split(":")[0] for number, row in bad.items()} == {
        3: "1 cells, not 2",
        5: "'utf-8' codec can't decode byte 0xff in position 0",
    }


def test_quoted_cells_hold_commas_newlines_and_quotes(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes('\ufeffa,b\n"x,\ny","q""q"\nonly\n1,2,3\nlast,\n'.encode() + b"\xff,1\n")
    rows, bad = rows_of(path, needed=["b", "a"])
    assert rows == [{"b": 'q"q', "a": "x,\ny"}, {"b": "", "a": "last"}]
    assert sorted(bad) == [3, 4, 6]
    assert bad[4].why == "3 cells, not 2"


@pytest.mark.parametrize("name", ["t.csv", "t.csv.bz2"])
def test_every_row_of_a_long_quoted_table_is_counted(tmp_path, monkeypatch, name):
    monkeypatch.setattr("shards.corpora.rows._BLOCK_BYTES", 1_000)
    text = "a,b\n" + "".join(f"{n}\n" if n % 7 == 0 else f'{n},"w\n{n}"\n' for n in range(1_000))
    (tmp_path / name).write_bytes(bz2.compress(text.encode()) if name.endswith("bz2") else text.encode())
    numbered = list(read_rows(tmp_path / name, needed=["a"]))
    assert [number for number, _ in numbered] == list(range(2, 1_002))
    assert [n - 2 for n, row in numbered if isinstance(row, BadRow)] == list(range(0, 1_000, 7))


def test_json_lines(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_bytes(b'{"a": 1}\n\n[1]\n{"a"\n\xff\n' + b'{"b": "\\u00e9"}')
    rows, bad = rows_of(path, needed=[])
    assert rows == [{"a": 1}, {"b": "é"}] and sorted(bad) == [3, 4, 5]


def test_parquet_reads_the_needed_columns(tmp_path):
    path = tmp_path / "t.parquet"
    pa.parquet.write_table(pa.table({"a": [1, 2], "b": ["x", None], "c": [0, 0]}), path, row_group_size=1)
    assert rows_of(path, needed=["a", "b"])[0] == [{"a": 1, "b": "x"}, {"a": 2, "b": None}]
    path.write_bytes(path.read_bytes()[:-9])
    rows, bad = rows_of(path, needed=["a", "b"])
    assert rows == [] and bad[1].tail


def test_a_stream_that_breaks_off_ends_with_one_entry(tmp_path):
    data = gzip.compress(b"".join(b"row %d\tx\n" % number for number in range(40_000)))
    for suffix in ("tsv", "csv"):
        path = tmp_path / f"t.{suffix}.gz"
        whole = data if suffix == "tsv" else gzip.compress(gzip.decompress(data).replace(b"\t", b","))
        path.write_bytes(whole[: len(whole) // 2])
        rows, bad = rows_of(path, needed=["a"], columns=["a", "b"])
        assert len(bad) == 1 and next(iter(bad.values())).tail
        assert next(iter(bad)) == len(rows) + 1
    with pytest.raises(ConfigError, match="expected a readable file, got No such file"):
        list(numbered_lines(tmp_path / "none.tsv"))


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.parquet"])
def test_missing_columns_are_one_clear_error(tmp_path, name):
    path = tmp_path / name
    if name.endswith("parquet"):
        pa.parquet.write_table(pa.table({"a": [1], "b": [2]}), path)
    else:
        path.write_text("a,b\n1,2\n" if name.endswith("csv") else "a\tb\n1\t2\n")
    with pytest.raises(ConfigError, match=r"expected the columns a, url, got a, b \(missing: url\)"):
        list(read_rows(path, needed=["a", "url"]))


def test_a_first_line_of_other_columns_and_other_kinds_of_file(tmp_path):
    path = tmp_path / "t.tsv"
    path.write_text("1\t2\t3\n")
    with pytest.raises(ConfigError, match="expected the columns a, b, got a first line of 3"):
        list(read_rows(path, needed=["a"], columns=["a", "b"]))
    with pytest.raises(ConfigError, match=r"ends in .tsv, .csv, .jsonl, .parquet, got t.xml"):
        list(read_rows(tmp_path / "t.xml", needed=[]))
    path.write_bytes(b"\xff\n")
    with pytest.raises(ConfigError, match="expected a table in UTF-8"):
        list(read_rows(path, needed=["a"]))


def test_names_of_files_are_short_and_differ(tmp_path):
    for name in ("x/a.tsv", "y/a.tsv", "y/b.tsv.gz", "y/.hidden.tsv", "y/c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert list(named_files(tmp_path, [".tsv"])) == ["x/a.tsv", "y/a.tsv", "b.tsv.gz"]
    assert list(named_files([tmp_path / "y" / "*.tsv", tmp_path / "y" / "c.txt"], [".tsv"])) == ["a.tsv", "c.txt"]
    assert (plain_suffix(tmp_path / "a.EN-de.tsv.gz"), plain_stem(tmp_path / "a.en-de.tsv.gz")) == (".tsv", "a.en-de")
    with pytest.raises(ConfigError, match=r"expected a file that ends in .xml, got a folder without one"):
        named_files(tmp_path, [".xml"])
