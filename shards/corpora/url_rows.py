"""Corpora that are lists of URLs: what they have in common before and after the download.

list of URLs --url_rows--> `python -m shards download RECIPE` --> DOWNLOADS/00000.tar, 00000.parquet --parts--> drafts

A build never touches the network: it reads the folder of downloads, and gives the same bytes each time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

from cclm.errors import ConfigError
from shards.corpora.files import named_files
from shards.corpora.image_row import Captions, ImageRow, key_of, lazy_images
from shards.corpora.refusal import refused
from shards.corpora.rows import BadRow
from shards.corpora.tar_table import table_rows
from shards.corpora.translations import Translations, with_translations
from shards.parts import LazyRecord, Part, file_stamp

COMPLETE_NAME: Final = "complete.json"
"""Written when every URL of the list was tried."""
TABLE_COLUMNS: Final = ("url", "message", "captions", "ids", "licence", "identity")


@dataclass(frozen=True, kw_only=True)
class UrlRow:
    """A picture that is not here yet."""

    url: str
    captions: Captions
    ids: Mapping[str, str] = field(default_factory=dict)
    licence: str = ""
    identity: str = ""
    bad: str = ""
    """Given: this entry of the list cannot be read, and why; it is counted, not fetched."""


class Downloadable(Protocol):
    """A corpus whose pictures have to be fetched."""

    @property
    def downloads(self) -> Path | None:
        """Where they go."""
        ...

    def url_rows(self) -> Iterator[UrlRow]:
        """Yield the list's entries, always in the same order."""
        ...

    def list_stamp(self) -> str:
        """Return what changes when the list does."""
        ...


def downloaded_parts(
    corpus: Downloadable, *, source: str, licence: str, translations: Sequence[Translations] = ()
) -> Sequence[Part]:
    """Return one part per tar of the folder of downloads (with translations: one part).

    Raises:
        ConfigError: nothing was downloaded yet, not everything, or another list.
    """
    folder = corpus.downloads
    complete = folder / COMPLETE_NAME if folder is not None else None
    if folder is None or complete is None or not complete.exists():
        raise ConfigError(
            expected="downloaded pictures",
            got="none, or a download that has not seen the whole list yet",
            do="Run `python -m shards download RECIPE.yaml` first.",
            where=str(folder),
        )
    if json.loads(complete.read_bytes())["stamp"] != corpus.list_stamp():
        raise ConfigError(
            expected="the downloads of this list",
            got="those of another list, or of one that has changed",
            do="Choose another `downloads`, or remove it and download again.",
            where=str(folder),
        )
    tables = named_files(folder, (".parquet",))
    if translations:
        files = [*tables.values(), *(path for one in translations for path in one.files().values())]
        read = partial(_read, list(tables.items()), source, licence, translations)
        return [Part(name="joined", read=read, stamp="-".join(map(file_stamp, files)))]
    return [
        Part(name=name, read=partial(_read, [(name, path)], source, licence, ()), stamp=file_stamp(path))
        for name, path in tables.items()
    ]


def _read(
    tables: Sequence[tuple[str, Path]], source: str, licence: str, translations: Sequence[Translations]
) -> Iterator[LazyRecord]:
    rows = (row for name, path in tables for row in _rows(name, path, source, licence))
    return lazy_images(with_translations(rows, translations, source))


def _rows(name: str, table: Path, source: str, licence: str) -> Iterator[ImageRow | LazyRecord]:
    for number, row, image in table_rows(table, TABLE_COLUMNS):
        where = f"{name}:{number}"
        if isinstance(row, BadRow):
            yield row.draft(name, number, source)
        elif image is None:
            yield refused(
                key=where,
                source=source,
                reason=str(row["status"]),
                expected="a downloaded picture",
                got=f"{row['message']} ({row['url']})",
                where=where,
                do="`python -m shards download` tries again what may pass; leave the others out.",
            )
        else:
            ids: dict[str, Any] = json.loads(row["ids"])
            yield ImageRow(
                key=key_of(f"{source}-{row['key']}"),
                image=image,
                captions=json.loads(row["captions"]),
                source=source,
                licence=row["licence"] or licence,
                identity=row["identity"],
                ids={"key": row["key"], "url": row["url"]} | ids,
                where=where,
            )
