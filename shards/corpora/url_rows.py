"""Corpora that are lists of URLs: what they have in common before and after the download.

list of URLs --url_rows--> `python -m shards download RECIPE` --> DOWNLOADS/00000.tar, 00000.parquet --parts--> records

A build never touches the network: it reads the folder of downloads, and gives the same bytes each time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from cclm.errors import DataError
from cclm.files.atomic import file_sha256
from shards.corpora.cells import captions, identifiers, mapping, optional
from shards.corpora.files import note_read
from shards.corpora.image_corpus import ImageCorpus
from shards.corpora.image_row import Captions, ImageRow, key_of
from shards.corpora.refusal import each
from shards.corpora.rows import Row
from shards.corpora.tar_table import found_tables, image_of, table_rows
from shards.guard import mistaken
from shards.parts import LazyRecord, Part, Skipped, file_stamp

COMPLETE_NAME: Final = "complete.json"
"""Written when every URL of the list was tried."""
TABLE_COLUMNS: Final = ("url", "message", "captions", "ids", "licence", "identity")


@dataclass(frozen=True, kw_only=True)
class UrlRow:
    """An image that is not here yet."""

    url: str
    captions: Captions
    ids: Mapping[str, str] = field(default_factory=dict)
    licence: str = ""
    identity: str = ""
    bad: str = ""
    """Given: this entry of the list cannot be read, and why; it is counted, not fetched."""


def url_rows_of(items: Iterable[UrlRow | LazyRecord | Skipped]) -> Iterator[UrlRow]:
    """Yield the entries of a list; refusals become bad ones, what was skipped is no entry."""
    for item in items:
        if isinstance(item, UrlRow):
            yield item
        elif isinstance(item, LazyRecord):
            try:
                item.make()
            except DataError as error:
                yield UrlRow(url="", captions={}, bad=f"{error.where}: expected {error.expected}, got {error.got}")


@dataclass(frozen=True, kw_only=True)
class Downloadable(ImageCorpus):
    """A corpus whose images have to be fetched: `python -m shards download` reads its list, a build what came."""

    downloads: Path | None
    """Folder of the images that `python -m shards download` fetches."""

    def url_rows(self) -> Iterator[UrlRow]:
        """Yield the list's entries, always in the same order."""
        raise NotImplementedError

    def list_stamp(self, stamp_of: Callable[[Path], str] = file_stamp) -> str:
        """Return what changes when the list does: the stamps of its files, and what is taken from them."""
        raise NotImplementedError

    def list_record(self) -> dict[str, str]:
        """Return what tells later whether this is still the same list (see `is_list`)."""
        return {"stamp": self.list_stamp(), "sha256": self.list_stamp(file_sha256)}

    def is_list(self, record: Mapping[str, Any]) -> bool:
        """Tell whether a record is of this list: by size and time of its files, else (touched, copied) by content."""
        return record["stamp"] == self.list_stamp() or record.get("sha256") == self.list_stamp(file_sha256)

    def parts(self) -> Sequence[Part]:
        """Return one part per tar of the folder of downloads (with translations: one part).

        Raises:
            ConfigError: nothing was downloaded yet, not everything, or another list.
        """
        folder, complete = self.downloads, self.downloads / COMPLETE_NAME if self.downloads else None
        if folder is None or complete is None or not complete.exists():
            do = "Run `python -m shards download RECIPE.yaml` first."
            mistaken("downloaded images", "none, or a download that has not seen the whole list yet", do, folder)
        if not self.is_list(json.loads(complete.read_bytes())):
            do = "Choose another `downloads`, or remove it and download again."
            mistaken("the downloads of this list", "those of another list, or of one that has changed", do, folder)
        note_read([complete, folder / "list.json"])
        return self.parts_of_each(found_tables(folder), self._downloaded)

    def _downloaded(self, name: str, table: Path) -> Iterator[ImageRow | LazyRecord]:
        return each(table_rows(name, table, TABLE_COLUMNS), self._image, self.source)

    def _image(self, place: str, row: Row) -> Iterator[ImageRow]:
        message = f"{row['message']} ({row['url']})"
        image = image_of(row, message, "`python -m shards download` tries again what may pass; leave the others out.")
        ids: Mapping[str, Any] = mapping(json.loads(row["ids"]), "ids")
        yield self.image_row(
            key=key_of(f"{self.source}-{row['key']}"),
            image=image,
            captions=captions(json.loads(row["captions"])),
            licence=optional(row["licence"]),
            identity=optional(row["identity"]),
            ids=identifiers(row, ("key", "url")) | identifiers(ids, ids),
            where=place,
        )
