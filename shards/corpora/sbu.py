"""SBU captioned photos: a million URLs of Flickr, in the two forms they are handed out in.

SBU_captioned_photo_dataset_urls.txt, SBU_captioned_photo_dataset_captions.txt     line n belongs to line n
sbu-captions-all.json    {"image_urls": ["…"], "captions": ["…"], "user_ids": ["…"]}
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cclm.errors import ConfigError
from shards.corpora.files import open_plain
from shards.corpora.json_stream import json_values
from shards.corpora.rows import BadRow
from shards.corpora.translations import Translations
from shards.corpora.url_rows import UrlRow, downloaded_parts
from shards.parts import Part, file_stamp

_URLS: Final = "SBU_captioned_photo_dataset_urls.txt"
_CAPTIONS: Final = "SBU_captioned_photo_dataset_captions.txt"
_JSON: Final = "sbu-captions-all.json"


@dataclass(frozen=True, kw_only=True)
class Sbu:
    """The list; `python -m shards download` fetches it, and the build reads what it fetched."""

    folder: Path
    """Holds the two text files, or the JSON file (also .gz)."""
    downloads: Path
    """Folder of the pictures."""
    language: str = "en"
    """Of the captions."""
    source: str = "sbu"
    """The corpus's name."""
    licence: str = "unknown"
    """SPDX tag of the pictures."""
    translations: Sequence[Translations] = ()
    """Further captions, joined on `url` or `row` (the line's number from 1)."""

    def parts(self) -> Sequence[Part]:
        """Find what was downloaded."""
        return downloaded_parts(self, source=self.source, licence=self.licence, translations=self.translations)

    def list_stamp(self) -> str:
        """Return size and time of the files."""
        return "-".join(map(file_stamp, self._files()))

    def _files(self) -> list[Path]:
        for names in ((_URLS, _CAPTIONS), (_JSON,), (f"{_JSON}.gz",)):
            files = [self.folder / name for name in names]
            if all(file.exists() for file in files):
                return files
        raise ConfigError(
            expected=f"{_URLS} and {_CAPTIONS}, or {_JSON}",
            got="neither",
            do="Correct `folder`.",
            where=str(self.folder),
        )

    def url_rows(self) -> Iterator[UrlRow]:
        """Yield one entry a picture; where one list is longer than the other, its further entries are bad."""
        for number, (url, caption) in enumerate(self._entries(), 1):
            bad = ""
            if not isinstance(url, str) or not isinstance(caption, str) or not url:
                bad = f"entry {number}: expected a URL and a caption, got {url!r} and {caption!r}"
            texts = {self.language: [caption]} if isinstance(caption, str) else {}
            yield UrlRow(url=url if isinstance(url, str) else "", captions=texts, ids={"row": str(number)}, bad=bad)

    def _entries(self) -> Iterator[tuple[object, object]]:
        files = self._files()
        if len(files) == 1:
            yield from itertools.zip_longest(
                json_values(files[0], "image_urls.item"), json_values(files[0], "captions.item")
            )
            return
        with ExitStack() as stack:
            opened = [stack.enter_context(open_plain(path)) for path in files]
            for lines in itertools.zip_longest(*opened):
                url, caption = (line if line is None else _text(line) for line in lines)
                yield url, caption


def _text(line: bytes) -> str | BadRow:
    try:
        return line.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        return BadRow(str(error))
