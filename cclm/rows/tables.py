"""Rows of a table (TSV, CSV, JSON lines, Parquet, Arrow) and elements of a JSON document, never whole in memory."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final

import pyarrow as pa
import pyarrow.parquet

from cclm.errors import DataError
from cclm.rows.guard import bad, data_errors, described, guarded, mistaken, optional_library
from cclm.rows.lines import LINE_BYTES, numbered_lines, open_plain, parsed_lines, plain_suffix, raw_lines

ARROW_SUFFIXES: Final = (".parquet", ".arrow")
TABLE_SUFFIXES: Final = (".tsv", ".csv", ".jsonl", *ARROW_SUFFIXES)
_BATCH_ROWS: Final = 1024
_BUFFER_BYTES: Final = 1 << 20
_BARE_RETURN: Final = re.compile("\r(?!\n$)")
_STAND_IN: Final = "\udc0d"
"""For a carriage return inside a line, which the csv module would take for the line's end; no text holds it."""

DEEPEST: Final = 512
"""Open lists and objects of a JSON document; annotation files have fewer than ten. ijson's path to a value costs the
square of them, 25 GB for 100,000 brackets."""
_ESCAPE: Final = re.compile(rb"\\.", re.DOTALL)
_OTHERS: Final = bytes(set(range(256)) - set(b"[]{}"))

Row = dict[str, Any]
"""Cells by column."""


def read_rows(
    name: str,
    path: Path,
    *,
    needed: Collection[str],
    optional: Collection[str] = (),
    columns: Sequence[str] = (),
    quoted: bool = False,
    tabs: bool = False,
) -> Iterator[tuple[str, Row | DataError]]:
    """Yield ("NAME:NUMBER", row) of a table; a row that cannot be read, or the rest of a broken file, is an error.

    Args:
        name: the file's, for places.
        path: .tsv, .csv, .jsonl (all also compressed), .parquet or .arrow.
        needed: columns that must be there.
        optional: columns that may be there; of a Parquet or Arrow file, others are not read.
        columns: names of the columns of a TSV or CSV file without a header line. In a TSV file, those after the last
            needed one may be missing.
        quoted: whether cells of a TSV file may stand in `"`; in CSV they always may.
        tabs: a CSV file is a TSV file by another name.

    Raises:
        ConfigError: another kind of file, or a needed column is missing.
    """
    suffix = ".tsv" if tabs and plain_suffix(path) == ".csv" else plain_suffix(path)
    if suffix in ARROW_SUFFIXES:
        return guarded(name, enumerate(_arrow_rows(path, needed, optional), 1))
    if suffix == ".jsonl":
        return guarded(name, parsed_lines(path, parse_object))
    if suffix not in (".tsv", ".csv", ".txt"):
        mistaken(f"a file that ends in {', '.join(TABLE_SUFFIXES)}", path.name, "Convert it, or rename it.", path)
    if quoted or suffix == ".csv":
        rows = _quoted_cells(path, "," if suffix == ".csv" else "\t")
        return guarded(name, _table_rows(path, rows, needed, columns, least=0))
    lines = (line if isinstance(line, DataError) else line.split("\t") for _, line in numbered_lines(path))
    return guarded(name, _table_rows(path, lines, needed, columns, least=len(needed) if columns else 0))


def check_columns(needed: Collection[str], there: Sequence[str], path: Path) -> None:
    """Refuse a table without the needed columns, or with two of one name."""
    missing = [name for name in needed if there.count(name) != 1]
    if missing:
        word = "twice" if missing[0] in there else "missing"
        got = f"{', '.join(map(str, there)) or 'none'} ({word}: {', '.join(missing)})"
        do = "Name the right columns in the recipe, or all columns of a file without a header line."
        mistaken(f"the columns {', '.join(needed)}", got, do, path)


def _table_rows(
    path: Path, rows: Iterable[list[str] | DataError], needed: Collection[str], columns: Sequence[str], least: int
) -> Iterator[tuple[int, Row | DataError]]:
    """Yield the rows of a table whose first row names the columns, or has cells for all (or the `least`) of them."""
    names = list(columns)
    for number, cells in enumerate(rows, 1):
        if isinstance(cells, DataError):
            if not names:
                raise cells  # the header
            yield number, cells
            continue
        if number == 1:
            names = names or cells
            check_columns(needed, names, path)
            least = max(map(names.index, needed)) + 1 if least else len(names)
            if not least <= len(cells) <= len(names):
                got, do = f"a first line of {len(cells)}", "Name the file's columns in the recipe."
                mistaken(f"the columns {', '.join(names)}", got, do, path)
            if not columns:
                continue
        if cells == [""] and len(names) > 1:  # a blank line is no row
            continue
        if least <= len(cells) <= len(names):
            yield number, dict(zip(names, cells, strict=False))
        else:
            yield number, bad("line_broken", "a row with the table's columns", f"{len(cells)} cells, not {len(names)}")


def _quoted_cells(path: Path, delimiter: str) -> Iterator[list[str] | DataError]:
    csv.field_size_limit(LINE_BYTES)
    with open_plain(path) as file:
        # Undecodable bytes become surrogates: they must cost their row, not all that follows.
        lines = (line if isinstance(line, bytes) else b"\xff\n" for line in raw_lines(file))
        texts = (_BARE_RETURN.sub(_STAND_IN, line.decode("utf-8", "surrogateescape")) for line in lines)
        rows = csv.reader(texts, delimiter=delimiter, strict=True)
        while True:
            line = rows.line_num + 1
            try:
                cells = next(rows, None)
            except csv.Error as error:
                if "unexpected end" in str(error):
                    got = f"none for one in the row that begins in line {line}"
                    raise bad("file_broken", "a quote that closes", got) from error
                yield bad("line_broken", "cells as in RFC 4180", f"{error} (the row begins in line {line})")
                continue
            if cells is None:
                return
            if cells:
                yield _whole(cells)


def _whole(cells: list[str]) -> list[str] | DataError:
    joined = "".join(cells)
    if joined.isascii():
        return cells
    if _STAND_IN in joined:
        cells, joined = [cell.replace(_STAND_IN, "\r") for cell in cells], joined.replace(_STAND_IN, "\r")
    try:
        joined.encode("utf-8")
    except UnicodeEncodeError as error:
        return bad("line_broken", "a row in UTF-8", f"the byte 0x{ord(joined[error.start]) - 0xDC00:02x}")
    return cells


def parse_json(data: str | bytes) -> Any:
    """Return the value of a JSON text (ValueError, RecursionError: not UTF-8, not JSON, or a key stands twice)."""
    return DECODER.decode(data if isinstance(data, str) else data.decode("utf-8-sig"))


def _object(pairs: list[tuple[str, Any]]) -> Row:
    values = dict(pairs)
    if len(values) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {twice!r} twice")
    return values


DECODER: Final = json.JSONDecoder(object_pairs_hook=_object)
"""Made once: `json.loads` would make one for every line, which takes as long as the line itself."""


def parse_object(line: str | bytes) -> Row | DataError:
    """Return the JSON object on a line, or why there is none."""
    expected = "one JSON object a line, in UTF-8"
    try:
        row = parse_json(line)
    except (ValueError, RecursionError) as error:
        return bad("line_broken", expected, described(error))
    return row if isinstance(row, dict) else bad("line_broken", expected, f"a JSON {type(row).__name__}")


def json_items(name: str, path: Path, prefix: str = "item") -> Iterator[tuple[str, Any | DataError]]:
    """Yield ("NAME:NUMBER", element) of an array in a JSON document; see `json_values`."""
    return guarded(name, enumerate(json_values(path, prefix), 1))


def json_values(path: Path, prefix: str) -> Iterator[Any]:
    """Yield the elements of an array, in ijson's words: "annotations.item", or "item" where the document is one."""
    ijson = optional_library("ijson", "it reads large JSON files")
    with open_plain(path) as file:
        if file.peek(3)[:3] == b"\xef\xbb\xbf":  # type: ignore[attr-defined]
            file.read(3)
        yield from ijson.items(ShallowJson(file), prefix, use_float=True)


class ShallowJson:
    """A JSON file for `ijson`; `read` raises a DataError (file_broken) where more than DEEPEST values are open."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._open = self._escape = b""
        self._in_string = False

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes."""
        data = self._file.read(size)
        text = _ESCAPE.sub(b"", self._escape + data)  # without escapes, each quote begins or ends a string
        self._escape = text[-1:] if text.endswith(b"\\") else b""
        parts = text.split(b'"')
        brackets = self._open + b"".join(parts[self._in_string :: 2]).translate(None, _OTHERS)
        self._in_string ^= len(parts) % 2 == 0
        for _ in range(DEEPEST):
            before, brackets = brackets, brackets.replace(b"[]", b"").replace(b"{}", b"")
            if len(brackets) == len(before) <= DEEPEST:
                self._open = brackets
                return data
        raise bad("file_broken", f"JSON with at most {DEEPEST} lists and objects in each other", "more")


def arrow_table(path: Path) -> pa.Table:
    """Return an Arrow stream or file, mapped: it costs address space, not memory."""
    source = pa.memory_map(str(path))
    try:
        return pa.ipc.open_stream(source).read_all()
    except pa.ArrowInvalid:
        source.seek(0)
        return pa.ipc.open_file(source).read_all()


def open_parquet(path: Path) -> pa.parquet.ParquetFile:
    """Open a Parquet file so that its columns are read in pieces, never a row group at once."""
    return pa.parquet.ParquetFile(path, buffer_size=_BUFFER_BYTES, pre_buffer=False)


def column_names(path: Path) -> list[str]:
    """Return the columns of a Parquet or Arrow file (DataError: it cannot be read)."""
    with data_errors(path.name):
        if path.suffix.lower() == ".arrow":
            return list(arrow_table(path).column_names)
        return list(pa.parquet.read_schema(path).names)


def _arrow_rows(path: Path, needed: Collection[str], optional: Collection[str]) -> Iterator[Row | DataError]:
    there = column_names(path)
    check_columns(needed, there, path)
    columns = [*needed, *(name for name in optional if name in there)]
    if path.suffix.lower() == ".arrow":
        batches = iter(arrow_table(path).select(columns).to_batches(max_chunksize=_BATCH_ROWS))
    else:
        batches = open_parquet(path).iter_batches(batch_size=_BATCH_ROWS, columns=columns, use_threads=False)
    for batch in batches:
        yield from _rows_in(batch)


def _rows_in(batch: pa.RecordBatch) -> Iterator[Row | DataError]:
    """Yield the rows of a batch; where one cannot be had (no UTF-8, a date beyond Python's), only that one is lost."""
    try:
        batch.validate(full=True)
        yield from batch.to_pylist()
    except (pa.ArrowException, ValueError, OverflowError) as error:
        if batch.num_rows == 1:
            yield bad("line_broken", "cells that can be read", described(error))
        else:
            for number in range(batch.num_rows):
                yield from _rows_in(batch.slice(number, 1))
