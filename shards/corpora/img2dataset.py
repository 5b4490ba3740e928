"""What img2dataset downloaded: CC3M, CC12M, LAION, SBU, COYO, DataComp, … (output_format webdataset)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from shards.corpora.caption_columns import CaptionColumns
from shards.corpora.files import named_files
from shards.corpora.image_row import ImageRow, key_of, lazy_images
from shards.corpora.refusal import broken_row, refused
from shards.corpora.rows import BadRow
from shards.corpora.tar_table import table_rows
from shards.corpora.translations import Translations, with_translations
from shards.parts import LazyRecord, Part, file_stamp


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
        tables = named_files(self.folder, (".parquet",))
        if self.translations:
            files = [*tables.values(), *(path for one in self.translations for path in one.files().values())]
            stamp = "-".join(map(file_stamp, files))
            return [Part(name="joined", read=partial(self.read, list(tables.items())), stamp=stamp)]
        return [
            Part(name=name, read=partial(self.read, [(name, path)]), stamp=file_stamp(path))
            for name, path in tables.items()
        ]

    def read(self, tables: Sequence[tuple[str, Path]]) -> Iterator[LazyRecord]:
        """Yield one draft a row."""
        rows = (row for name, path in tables for row in self._rows(name, path))
        return lazy_images(with_translations(rows, self.translations, self.source))

    def _rows(self, name: str, table: Path) -> Iterator[ImageRow | LazyRecord]:
        further = [*self.captions.columns(), *self.ids, self.licence_column]
        needed = [column for column in dict.fromkeys((*further, "error_message")) if column]
        for number, row, image in table_rows(table, needed):
            where = f"{name}:{number}"
            if isinstance(row, BadRow):
                yield row.draft(name, number, self.source)
                continue
            captions = self.captions.captions_of(row)
            if image is None:
                yield refused(
                    key=where,
                    source=self.source,
                    reason=str(row["status"]),
                    expected="a downloaded picture",
                    got=str(row["error_message"]),
                    where=where,
                    do="Run img2dataset again on the failed rows, or leave them out.",
                )
            elif isinstance(captions, BadRow):
                yield broken_row(name, number, self.source, captions.why, captions.expected)
            else:
                licence = row.get(self.licence_column) if self.licence_column else None
                ids = {"key": str(row["key"])} | {name: str(row[name]) for name in self.ids if row[name] is not None}
                yield ImageRow(
                    key=key_of(f"{name}:{row['key']}"),
                    image=image,
                    captions=captions,
                    source=self.source,
                    licence=str(licence or self.licence),
                    ids=ids,
                    where=where,
                )
