"""A folder of pictures with a table of captions beside them: how to bring your own image-text corpus.

captions.jsonl           {"image": "a/b.jpg", "captions": {"en": ["…"], "de": ["…"]}, "licence": "CC-BY-4.0"}
captions.csv (or .tsv)   image,language,caption[,licence,source,identity]; one line a caption, with a header
captions.parquet         the same columns
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import pyarrow.parquet

from cclm.errors import ConfigError
from cclm.types import Region
from shards.corpora.files import open_plain, plain_suffix
from shards.corpora.image_row import ImageRow, key_of, lazy_images
from shards.corpora.picture import load_file
from shards.corpora.refusal import broken_row, first, refused
from shards.corpora.rows import BadRow, check_columns, read_rows
from shards.corpora.spill import grouped
from shards.parts import LazyRecord, Part, file_stamp

TABLES: Final = ("captions.jsonl", "captions.csv", "captions.tsv", "captions.parquet")
_COLUMNS: Final = ("image", "language", "caption")
_OPTIONAL: Final = ("licence", "source", "identity", "key")


@dataclass(frozen=True, kw_only=True)
class ImageFolder:
    """One part, with one draft per picture that the table names."""

    folder: Path
    """Holds the table (one of TABLES, also compressed); the table's paths are relative to it."""
    source: str = ""
    """The corpus's name where a line gives none; empty: the folder's name."""
    licence: str = "unknown"
    """SPDX tag where a line gives none."""
    table: str = ""
    """Name of the table; empty: the first one of TABLES that is there."""

    def parts(self) -> Sequence[Part]:
        """Find the table, and take time and size of every picture that it names."""
        path = self._table()
        stamp, number = hashlib.sha256(file_stamp(path).encode()), 0
        for number, row in enumerate(self._rows(path), 1):  # noqa: B007
            if isinstance(row, ImageRow):
                stamp.update(_stamp(self.folder / row.ids["path"]).encode())
        return [Part(name=path.name, read=partial(self.read, path), stamp=stamp.hexdigest(), records=number)]

    def _table(self) -> Path:
        for name in (self.table,) if self.table else TABLES:
            if (self.folder / name).exists():
                return self.folder / name
        raise ConfigError(
            expected=self.table or "captions.jsonl or captions.csv (or .tsv, .parquet)",
            got="neither" if not self.table else "no such file",
            do="Write one; docs/corpora.md says how.",
            where=str(self.folder),
        )

    def read(self, path: Path) -> Iterator[LazyRecord]:
        """Yield one draft a picture."""
        return lazy_images(self._rows(path))

    def _rows(self, path: Path) -> Iterator[ImageRow | LazyRecord]:
        name, source = path.name, self.source or self.folder.resolve().name
        if plain_suffix(path) == ".jsonl":
            for number, row in read_rows(path, needed=()):
                yield row.draft(name, number, source) if isinstance(row, BadRow) else self._row(row, number, name)
            return
        for image, entries in grouped(_captions(path)):
            bad = [(number, row) for number, row in entries if isinstance(row, BadRow)]
            yield from (row.draft(name, number, source) for number, row in bad)
            lines = [(number, row) for number, row in entries if not isinstance(row, BadRow)]
            if lines:
                yield self._row(_merged(image, [row for _, row in lines]), lines[0][0], name)

    def _row(self, row: dict[str, Any], number: int, table: str) -> ImageRow | LazyRecord:
        """Return the picture of a line of JSON, or of the gathered lines of another table."""
        place = f"{table}:{number}"
        source = str(row.get("source") or self.source or self.folder.resolve().name)
        image, captions = row.get("image"), row.get("captions")
        if not isinstance(image, str) or not image:
            return refused(
                key=place,
                source=source,
                reason="image_missing",
                expected='a path in the field "image"',
                got=repr(image),
                where=f"{self.folder}/{place}",
            )
        try:
            regions = tuple(_region(region) for region in row.get("regions") or ())
            texts = {str(language): list(of_one) for language, of_one in (captions or {}).items()}
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            why = f"{error} in {first(row)}"
            return broken_row(table, number, source, why, "captions and regions as docs/corpora.md shows them")
        return ImageRow(
            key=str(row.get("key") or key_of(image)),
            image=partial(load_file, self.folder / image),
            captions=texts,
            source=source,
            licence=str(row.get("licence") or self.licence),
            identity=str(row.get("identity") or ""),
            ids={"path": image},
            regions=regions,
            where=f"{self.folder}/{place}",
        )


def _captions(path: Path) -> Iterator[tuple[str, tuple[int, dict[str, Any] | BadRow]]]:
    for number, row in read_rows(path, needed=_columns_of(path)):
        yield (f"\0{number}" if isinstance(row, BadRow) else str(row["image"])), (number, row)


def _columns_of(path: Path) -> list[str]:
    """Return the columns to read: the needed ones, and what else of interest the header names."""
    if plain_suffix(path) == ".parquet":
        there: Sequence[str] = pyarrow.parquet.read_schema(path).names
    else:
        with open_plain(path) as file:
            line = file.readline().decode("utf-8-sig", "replace")
        there = [cell.strip('"\r\n') for cell in line.split("," if plain_suffix(path) == ".csv" else "\t")]
    check_columns(_COLUMNS, there, path)
    return [*_COLUMNS, *(name for name in _OPTIONAL if name in there)]


def _merged(image: str, lines: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Return one picture's fields, gathered from all of its lines."""
    merged: dict[str, Any] = {"image": image, "captions": {}}
    for line in lines:
        merged["captions"].setdefault(line["language"], []).append(line["caption"])
        merged |= {name: line[name] for name in _OPTIONAL if line.get(name)}
    return merged


def _region(region: dict[str, Any]) -> Region:
    x, y, width, height = (float(number) for number in region["box"])
    said = (region["captions"], region.get("attributes") or {})
    texts = [{str(language): list(of) for language, of in by_language.items()} for by_language in said]
    return Region(box=(x, y, width, height), captions=texts[0], attributes=texts[1])


def _stamp(path: Path) -> str:
    try:
        status = path.stat()
    except OSError:
        return "missing"
    return f"{status.st_size}-{status.st_mtime_ns}"
