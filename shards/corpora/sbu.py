"""SBU captioned photos: a million URLs of Flickr, in the two forms they are handed out in.

SBU_captioned_photo_dataset_urls.txt, SBU_captioned_photo_dataset_captions.txt     line n belongs to line n
sbu-captions-all.json    {"image_urls": ["…"], "captions": ["…"], "user_ids": ["…"]}
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from shards.corpora.cells import text
from shards.corpora.entries import each, guarded, refuse
from shards.corpora.files import named_files, note_left_out, plain_stem, plain_suffix
from shards.corpora.languages import ENGLISH, LanguageTag
from shards.corpora.lines import aligned_lines
from shards.corpora.rows import json_values
from shards.corpora.url_list import Downloadable, UrlRow
from shards.guard import mistaken
from shards.parts import LazyRecord

_URLS: Final = "SBU_captioned_photo_dataset_urls.txt"
_CAPTIONS: Final = "SBU_captioned_photo_dataset_captions.txt"
_JSON: Final = "sbu-captions-all.json"


@dataclass(frozen=True, kw_only=True)
class Sbu(Downloadable):
    """The list; `python -m shards download` fetches it, and the build reads what it fetched."""

    folder: Path
    """Holds the two text files, or the JSON file (also compressed)."""
    language: LanguageTag = ENGLISH
    """Of the captions."""
    source: str = "sbu"

    def list_files(self) -> list[Path]:
        """Return the two text files, or the JSON file."""
        there = named_files(self.folder, (".txt", ".json"))
        here = [path for path in there.values() if path.parent == self.folder]
        by_name = {f"{plain_stem(path)}{plain_suffix(path)}": path for path in here}
        for names in ((_URLS, _CAPTIONS), (_JSON,)):
            if by_name.keys() >= {*names}:
                files = [by_name[name] for name in names]
                for name, path in there.items():
                    if path not in files:
                        note_left_out(path, "another list", name)
                return files
        return mistaken(f"{_URLS} and {_CAPTIONS}, or {_JSON}", "neither", "Correct `folder`.", self.folder)

    def entries(self) -> Iterator[UrlRow | LazyRecord]:
        """Yield one entry an image; where one list is longer than the other, its further entries are refused."""
        files = self.list_files()
        if len(files) == 1:
            both = [json_values(files[0], prefix) for prefix in ("image_urls.item", "captions.item")]
            numbered: Iterator[tuple[int, Any]] = enumerate(itertools.zip_longest(*both), 1)
        else:
            numbered = aligned_lines([("the URLs", files[0], ""), ("the captions", files[1], "")])
        return each(guarded("entry", numbered), self._row, self.source)

    def _row(self, place: str, entry: Sequence[Any]) -> Iterator[UrlRow]:
        url, caption = (text(cell, "a URL and a caption").strip() for cell in entry)
        if not url:
            refuse("line_broken", "a URL and a caption", "no URL")
        yield UrlRow(url=url, captions={self.language: [caption]}, ids={"row": place.rpartition(":")[2]})
