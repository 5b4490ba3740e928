"""A tar of images and the table beside it: what img2dataset writes (CC3M, CC12M, LAION, SBU, COYO, DataComp, …; its
output_format webdataset), and `python -m shards download`.

00000.tar       000000000.jpg, 000000000.json, 000000000.txt, …
00000.parquet   one row a URL: key, url, status, error_message, caption, …; failures have a row and no image
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from cclm.errors import DataError
from shards.corpora.cells import identifier, optional, text
from shards.corpora.columns import ColumnImages
from shards.corpora.entries import each, refuse
from shards.corpora.files import named_files, note_read
from shards.corpora.image_bytes import LoadImage, load_span
from shards.corpora.image_corpus import ImageRow, ImageRows, key_of
from shards.corpora.rows import Row, read_rows
from shards.corpora.webdataset import Span, tar_samples
from shards.parts import Part

SUCCESS: Final = "success"
_EXTENSIONS: Final = frozenset({"jpg", "jpeg", "png", "webp"})
_IMAGE: Final = "\0image"
"""Where `table_rows` puts what reads a row's image; no column has this name."""


def found_tables(paths: Path | Sequence[Path]) -> dict[str, Path]:
    """Return the tables below some paths by name; the tars beside them are read, too."""
    tables = named_files(paths, (".parquet",))
    note_read(table.with_suffix(".tar") for table in tables.values())
    return tables


def tar_spans(path: Path) -> tuple[dict[str, Span], str]:
    """Return key -> place of the images in a tar, and what is wrong with it; only headers are read."""
    spans: dict[str, Span] = {}
    try:
        for sample in tar_samples(path):
            images = [span for suffix, span in sample.members.items() if suffix in _EXTENSIONS]
            spans |= {sample.key.rsplit("/", 1)[-1]: span for span in images}
    except DataError as error:
        return spans, f"{path.name}: {error.got}"
    return spans, ""


def table_rows(name: str, table: Path, needed: Collection[str]) -> Iterator[tuple[str, Row | DataError]]:
    """Yield (place, row) for each row of a table, with what `image_of` wants to know about the tar beside it."""
    tar = table.with_suffix(".tar")
    spans, fault = tar_spans(tar)
    expected, got = "the image of a row with success", fault or "no member of this key"
    for place, row in read_rows(name, table, needed=dict.fromkeys(("key", "status", *needed))):
        if isinstance(row, dict) and row["status"] == SUCCESS:
            span = spans.get(str(row["key"]))
            missing = partial(refuse, "image_missing", expected, got, f"{tar.name} {row['key']}")
            row[_IMAGE] = partial(load_span, tar, *span) if span else missing
        yield place, row


def image_of(row: Row, message: str, do: str) -> LoadImage:
    """Return what reads the image of a row of `table_rows`; one without success is refused with its own status."""
    if _IMAGE not in row:
        refuse(text(row["status"], "a status") or "unexpected", "a downloaded image", message or "no message", do=do)
    image: LoadImage = row[_IMAGE]
    return image


@dataclass(frozen=True, kw_only=True)
class Img2dataset(ColumnImages):
    """One part per tar; every row of the tables becomes a record or, with img2dataset's own message, a refusal.

    Captions: `{text: caption, language: en}`, or what `save_additional_columns` kept. Ids: `key`, and those named.
    """

    folder: Path | Sequence[Path]
    """Holds 00000.tar, 00000.parquet, …"""
    ids: Sequence[str] = ("url",)
    """Columns to keep as ids, beside `key`."""

    def parts(self) -> Sequence[Part]:
        """Find the tables."""
        return self.parts_of_each(found_tables(self.folder), self.rows)

    def rows(self, name: str, table: Path) -> ImageRows:
        """Yield the images of a table and its tar."""
        return each(table_rows(name, table, self.wanted("error_message")), partial(self._row, name), self.source)

    def _row(self, name: str, place: str, row: Row) -> Iterator[ImageRow]:
        again = "Run img2dataset again on the failed rows, or leave them out."
        image = image_of(row, optional(row["error_message"], "a message"), again)
        key = identifier(row["key"])
        yield self.image_row(key=key_of(f"{name}:{key}"), image=image, where=place, **self.of_row(row, key=key))
