"""What img2dataset downloaded: CC3M, CC12M, LAION, SBU, COYO, DataComp, … (output_format webdataset)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from shards.corpora.caption_columns import CaptionColumns
from shards.corpora.cells import identifier, identifiers, optional
from shards.corpora.files import one_part, part_of_each
from shards.corpora.image_row import ImageRow, key_of, lazy_images
from shards.corpora.refusal import each
from shards.corpora.rows import Row
from shards.corpora.tar_table import found_tables, image_of, table_rows
from shards.corpora.translations import Translations, files_of, with_translations
from shards.parts import LazyRecord, Part, Skipped


@dataclass(frozen=True, kw_only=True)
class Img2dataset:
    """One part per tar; every row of the tables becomes a record or, with img2dataset's own message, a refusal."""

    folder: Path | Sequence[Path]
    """Holds 00000.tar, 00000.parquet, …"""
    captions: CaptionColumns
    """The columns of captions: `{text: caption, language: en}`, or what `save_additional_columns` kept."""
    source: str
    """The corpus's name."""
    ids: Sequence[str] = ("url",)
    """Columns to keep as ids, beside `key`."""
    licence: str = "unknown"
    """SPDX tag of the pictures."""
    licence_column: str = ""
    """Column of the licence (LAION has one), where rows differ."""
    translations: Sequence[Translations] = ()
    """Further captions, joined on one of `ids`; with them all tars are one part."""

    def parts(self) -> Sequence[Part]:
        """Find the tables."""
        self.captions.columns()
        tables = found_tables(self.folder)
        if self.translations:
            return one_part(
                "joined", partial(self.read_joined, tables), [*tables.values(), *files_of(self.translations)]
            )
        return part_of_each(tables, self.read)

    def read(self, name: str, table: Path) -> Iterator[LazyRecord | Skipped]:
        """Yield one record a row."""
        return lazy_images(self._rows(name, table))

    def read_joined(self, tables: Mapping[str, Path]) -> Iterator[LazyRecord | Skipped]:
        """Yield one record a row of all tables, with its translations."""
        rows = itertools.chain.from_iterable(itertools.starmap(self._rows, tables.items()))
        return lazy_images(with_translations(rows, self.translations, self.source))

    def _rows(self, name: str, table: Path) -> Iterator[ImageRow | LazyRecord]:
        further = [*self.captions.columns(), *self.ids, self.licence_column]
        needed = [column for column in dict.fromkeys((*further, "error_message")) if column]
        return each(table_rows(name, table, needed), partial(self._row, name), self.source)

    def _row(self, name: str, place: str, row: Row) -> Iterator[ImageRow]:
        again = "Run img2dataset again on the failed rows, or leave them out."
        image = image_of(row, optional(row["error_message"], "a message"), again)
        key = identifier(row["key"])
        yield ImageRow(
            key=key_of(f"{name}:{key}"),
            image=image,
            captions=self.captions.captions_of(row),
            source=self.source,
            licence=optional(row.get(self.licence_column), "a licence") or self.licence,
            ids={"key": key} | identifiers(row, self.ids),
            where=place,
        )
