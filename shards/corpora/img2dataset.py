"""What img2dataset downloaded: CC3M, CC12M, LAION, SBU, COYO, DataComp, … (output_format webdataset)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from shards.corpora.caption_columns import CaptionColumns
from shards.corpora.cells import identifier, identifiers, optional
from shards.corpora.image_corpus import ImageCorpus
from shards.corpora.image_row import ImageRow, key_of
from shards.corpora.refusal import each
from shards.corpora.rows import Row
from shards.corpora.tar_table import found_tables, image_of, table_rows
from shards.parts import LazyRecord, Part


@dataclass(frozen=True, kw_only=True)
class Img2dataset(ImageCorpus):
    """One part per tar; every row of the tables becomes a record or, with img2dataset's own message, a refusal."""

    folder: Path | Sequence[Path]
    """Holds 00000.tar, 00000.parquet, …"""
    captions: CaptionColumns
    """The columns of captions: `{text: caption, language: en}`, or what `save_additional_columns` kept."""
    ids: Sequence[str] = ("url",)
    """Columns to keep as ids, beside `key`."""
    licence_column: str = ""
    """Column of the licence (LAION has one), where rows differ."""

    def parts(self) -> Sequence[Part]:
        """Find the tables."""
        self.captions.columns()
        return self.parts_of_each(found_tables(self.folder), self.rows)

    def rows(self, name: str, table: Path) -> Iterator[ImageRow | LazyRecord]:
        """Yield the images of a table and its tar."""
        further = [*self.captions.columns(), *self.ids, self.licence_column]
        needed = [column for column in dict.fromkeys((*further, "error_message")) if column]
        return each(table_rows(name, table, needed), partial(self._row, name), self.source)

    def _row(self, name: str, place: str, row: Row) -> Iterator[ImageRow]:
        again = "Run img2dataset again on the failed rows, or leave them out."
        image = image_of(row, optional(row["error_message"], "a message"), again)
        key = identifier(row["key"])
        yield self.image_row(
            key=key_of(f"{name}:{key}"),
            image=image,
            captions=self.captions.captions_of(row),
            licence=optional(row.get(self.licence_column), "a licence"),
            ids={"key": key} | identifiers(row, self.ids),
            where=place,
        )
