"""SBU captioned photos: a million URLs of Flickr, in the two forms they are handed out in.

SBU_captioned_photo_dataset_urls.txt, SBU_captioned_photo_dataset_captions.txt     line n belongs to line n
sbu-captions-all.json    {"image_urls": ["…"], "captions": ["…"], "user_ids": ["…"]}
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from shards.corpora.cells import text
from shards.corpora.files import named_files, note_left_out, plain_stem, plain_suffix
from shards.corpora.json_stream import json_values
from shards.corpora.languages import ENGLISH, LanguageTag
from shards.corpora.lines import aligned_lines, open_plain
from shards.corpora.refusal import each, guarded, refuse
from shards.corpora.url_rows import Downloadable, UrlRow, url_rows_of
from shards.guard import mistaken
from shards.parts import file_stamp

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
    """The corpus's name."""

    def list_stamp(self, stamp_of: Callable[[Path], str] = file_stamp) -> str:
        """Return the stamps of the files."""
        return "-".join(map(stamp_of, self._files()))

    def _files(self) -> list[Path]:
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

    def url_rows(self) -> Iterator[UrlRow]:
        """Yield one entry an image; where one list is longer than the other, its further entries are bad."""
        return url_rows_of(each(guarded("entry", self._entries()), self._row, self.source))

    def _row(self, place: str, entry: Sequence[Any]) -> Iterator[UrlRow]:
        url, caption = (text(cell, "a URL and a caption").strip() for cell in entry)
        if not url:
            refuse("line_broken", "a URL and a caption", "no URL")
        yield UrlRow(url=url, captions={self.language: [caption]}, ids={"row": place.rpartition(":")[2]})

    def _entries(self) -> Iterator[tuple[int, Any]]:
        files = self._files()
        if len(files) == 1:
            both = [json_values(files[0], prefix) for prefix in ("image_urls.item", "captions.item")]
            yield from enumerate(itertools.zip_longest(*both), 1)
            return
        with ExitStack() as stack:
            opened = [stack.enter_context(open_plain(path)) for path in files]
            yield from aligned_lines(opened, ["the URLs", "the captions"])
