"""Rows of a table, whatever file it is: TSV, CSV, JSON lines or Parquet, plain or compressed, never whole in memory."""

from __future__ import annotations

import csv
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from cclm.errors import ConfigError
from shards.corpora.files import BROKEN_STREAM, COMPRESSIONS, numbered_lines, open_plain, plain_suffix
from shards.corpora.refusal import broken_row, broken_tail
from shards.parts import LazyRecord

TABLE_SUFFIXES: Final = (".tsv", ".csv", ".jsonl", ".parquet")
_BLOCK_BYTES: Final = 16 << 20
"""How much of a quoted table is parsed at once; no row may be longer."""
_BATCH_ROWS: Final = 1024
_JSON_LINE: Final = "one JSON object a line, in UTF-8"


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be read, or (`tail`) the rest of a file that breaks off."""

    why: str
    tail: bool = False
    expected: str = "a row with the table's columns, in UTF-8"

    def draft(self, name: str, number: int, source: str) -> LazyRecord:
        """Return the refusal that this row becomes."""
        if self.tail:
            return broken_tail(name, number, source, self.why)
        return broken_row(name, number, source, self.why, self.expected)


Numbered = tuple[int, dict[str, Any] | BadRow]
"""A row's number (blank lines of quoted tables do not count) and its cells by column."""


def read_rows(
    path: Path, *, needed: Collection[str], columns: Sequence[str] = (), quoted: bool | None = None, delimiter: str = ""
) -> Iterator[Numbered]:
    """Yield the rows of a table.

    Args:
        path: .tsv, .csv (both also .gz, .bz2, .zst), .jsonl (the same) or .parquet.
        needed: columns that must be there. Of a Parquet file only these are read.
        columns: names of the columns of a TSV or CSV file without a header line. In a TSV file, those after the last
            needed one may be missing.
        quoted: whether cells of a TSV or CSV file may stand in `"`; None: in CSV they may, in TSV not.
        delimiter: between cells; empty: a comma in CSV, a tab in TSV.

    Raises:
        ConfigError: another kind of file, or a needed column is missing.
    """
    suffix = plain_suffix(path)
    if suffix == ".parquet":
        return _read_parquet(path, needed)
    if suffix == ".jsonl":
        return _read_json_lines(path)
    if suffix in (".tsv", ".csv", ".txt"):
        delimiter = delimiter or ("," if suffix == ".csv" else "\t")
        if suffix == ".csv" if quoted is None else quoted:
            return _read_quoted(path, delimiter, needed, columns)
        return _read_unquoted(path, delimiter, needed, columns)
    raise ConfigError(
        expected=f"a file that ends in {', '.join(TABLE_SUFFIXES)}",
        got=path.name,
        do="Convert it, or rename it.",
        where=str(path),
    )


def check_columns(needed: Collection[str], there: Collection[str], path: Path) -> None:
    """Refuse a table without the needed columns."""
    missing = [name for name in needed if name not in there]
    if missing:
        raise ConfigError(
            expected=f"the columns {', '.join(needed)}",
            got=f"{', '.join(map(str, there)) or 'none'} (missing: {', '.join(missing)})",
            do="Name the right columns in the recipe, or all columns of a file without a header line.",
            where=str(path),
        )


def _header(path: Path, delimiter: str, columns: Sequence[str], *, quoted: bool = False, least: int = 0) -> list[str]:
    """Return the names of all columns; of a file without a header line, see that it has as many."""
    try:
        with open_plain(path) as file:
            line = file.readline().decode("utf-8-sig").rstrip("\r\n")
    except (UnicodeDecodeError, *BROKEN_STREAM) as error:
        raise ConfigError(expected="a table in UTF-8", got=str(error), do="Convert it.", where=str(path)) from error
    cells = next(csv.reader([line], delimiter=delimiter), []) if quoted else line.split(delimiter)
    if columns and not (least or len(columns)) <= len(cells) <= len(columns):
        raise ConfigError(
            expected=f"the columns {', '.join(columns)}",
            got=f"a first line of {len(cells)}",
            do="Name the file's columns in the recipe.",
            where=str(path),
        )
    return list(columns) or cells


def _read_unquoted(path: Path, delimiter: str, needed: Collection[str], columns: Sequence[str]) -> Iterator[Numbered]:
    names = _header(path, delimiter, columns, least=len(needed) if columns else 0)
    check_columns(needed, names, path)
    least = max(map(names.index, needed), default=0) + 1 if columns else len(names)
    for number, line in numbered_lines(path):
        if number == 1 and not columns:
            continue
        if not isinstance(line, bytes):
            yield number, BadRow(str(line), tail=True)
            return
        try:
            cells = line.decode("utf-8").split(delimiter)
        except UnicodeDecodeError as error:
            yield number, BadRow(str(error))
            continue
        if least <= len(cells) <= len(names):
            yield number, dict(zip(names, cells, strict=False))
        else:
            yield number, BadRow(f"{len(cells)} cells, not {len(names)}")


def _read_quoted(path: Path, delimiter: str, needed: Collection[str], columns: Sequence[str]) -> Iterator[Numbered]:
    names = _header(path, delimiter, columns, quoted=True)
    check_columns(needed, names, path)
    bad: dict[int, BadRow] = {}

    def keep(row: pa.csv.InvalidRow) -> str:
        bad[row.number] = BadRow(f"{row.actual_columns} cells, not {row.expected_columns}")
        return "skip"

    # Cells are read as bytes: one that is not UTF-8 must cost its row, not its block.
    number = 0 if columns else 1
    try:
        reader = pa.csv.open_csv(
            pa.input_stream(str(path), compression=COMPRESSIONS.get(path.suffix)),
            read_options=pa.csv.ReadOptions(
                column_names=names, skip_rows=0 if columns else 1, use_threads=False, block_size=_BLOCK_BYTES
            ),
            parse_options=pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True, invalid_row_handler=keep),
            convert_options=pa.csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.binary()), include_columns=list(needed)
            ),
        )
        for batch in reader:
            for cells in batch.to_pylist():
                number += 1
                while number in bad:
                    yield number, bad.pop(number)
                    number += 1
                yield number, _decoded(cells)
            yield from sorted((at, bad.pop(at)) for at in list(bad) if at <= number)
        yield from sorted(bad.items(), key=lambda item: item[0])
    except BROKEN_STREAM as error:
        if "Empty CSV file" not in str(error):  # a table with a header line and no rows
            yield number + 1, BadRow(str(error), tail=True)


def _decoded(cells: dict[str, bytes | None]) -> dict[str, Any] | BadRow:
    try:
        return {name: (value or b"").decode("utf-8") for name, value in cells.items()}
    except UnicodeDecodeError as error:
        return BadRow(str(error))


def _read_json_lines(path: Path) -> Iterator[Numbered]:
    for number, line in numbered_lines(path):
        if not isinstance(line, bytes):
            yield number, BadRow(str(line), tail=True)
        elif line.strip():
            yield number, parse_object(line)


def parse_object(line: bytes) -> dict[str, Any] | BadRow:
    """Return the JSON object on a line, or why there is none."""
    try:
        row = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        return BadRow(str(error), expected=_JSON_LINE)
    return row if isinstance(row, dict) else BadRow(f"a JSON {type(row).__name__}", expected=_JSON_LINE)


def _read_parquet(path: Path, needed: Collection[str]) -> Iterator[Numbered]:
    number = 0
    try:
        with pa.parquet.ParquetFile(path) as file:
            check_columns(needed, file.schema_arrow.names, path)
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=list(needed)):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except BROKEN_STREAM as error:
        yield number + 1, BadRow(str(error), tail=True)
