"""Flickr30k in its three forms, and IGLUE's xFlickr&CO, which adds COCO pictures to it.

results_20130124.token   1000092795.jpg#0 <TAB> Two young guys …
results.csv              image_name| comment_number| comment         (a header, cells between "|")
train_ann.jsonl          {"sentences": ["…"], "id": "1000092795", "img_path": "1000092795.jpg"}    (IGLUE)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from shards.corpora.files import files_by_language, numbered_lines, plain_suffix
from shards.corpora.image_files import folders_of, picture_in
from shards.corpora.image_row import ImageRow, key_of, lazy_images
from shards.corpora.numbered_captions import read_numbered_captions
from shards.corpora.refusal import first
from shards.corpora.rows import BadRow, read_rows
from shards.corpora.spill import grouped
from shards.corpora.translations import Translations, with_translations
from shards.parts import LazyRecord, Part, file_stamp

_SUFFIXES: Final = (".token", ".txt", ".csv", ".jsonl")


@dataclass(frozen=True, kw_only=True)
class Flickr30k:
    """One part, with one draft per picture, all of its languages together."""

    captions: Mapping[str, Path | Sequence[Path]]
    """Language -> annotation files (.token, .txt, .csv, .jsonl), folders or patterns."""
    images: Path | Sequence[Path]
    """Folders of pictures; for xFlickr&CO both Flickr30k's and COCO's val2014."""
    translations: Sequence[Translations] = ()
    """Further captions, joined on `image` (the file's name)."""
    source: str = "flickr30k"
    """The corpus's name."""
    licence: str = "unknown"
    """SPDX tag of the pictures."""

    def parts(self) -> Sequence[Part]:
        """Find the files."""
        folders_of(self.images)
        files = [path for _, path in self._files()]
        files += [path for one in self.translations for path in one.files().values()]
        return [Part(name="captions", read=self.read, stamp="-".join(map(file_stamp, files)))]

    def _files(self) -> list[tuple[str, Path]]:
        return files_by_language(self.captions, _SUFFIXES)

    def read(self) -> Iterator[LazyRecord]:
        """Yield one draft a picture."""
        return lazy_images(with_translations(self.rows(), self.translations, self.source))

    def rows(self) -> Iterator[ImageRow | LazyRecord]:
        """Yield the pictures, before they are read."""
        folders = folders_of(self.images)
        for name, items in grouped(self._items()):
            captions: dict[str, list[str]] = {}
            for item in items:
                if isinstance(item, LazyRecord):
                    yield item
                else:
                    captions.setdefault(item[0], []).extend(item[1])
            if captions:
                yield ImageRow(
                    key=key_of(name),
                    image=picture_in(folders, name),
                    captions=captions,
                    source=self.source,
                    licence=self.licence,
                    identity=Path(name).stem,
                    ids={"image": name},
                    where=f"{self.source} {name}",
                )

    def _items(self) -> Iterator[tuple[str, Any]]:
        for language, path in self._files():
            for number, entry in _entries(path):
                if isinstance(entry, BadRow):
                    yield f"\0{path}:{number}", entry.draft(path.name, number, self.source)
                else:
                    yield entry[0], (language, entry[1])


def _entries(path: Path) -> Iterator[tuple[int, tuple[str, list[str]] | BadRow]]:
    suffix = plain_suffix(path)
    if suffix == ".jsonl":
        for number, row in read_rows(path, needed=()):
            yield number, row if isinstance(row, BadRow) else _from_iglue(row)
    elif suffix == ".csv":
        yield from _from_bars(path)
    else:
        for number, found in read_numbered_captions(path):
            yield number, found if isinstance(found, BadRow) else (found[0], [found[1]])


def _from_iglue(row: Mapping[str, Any]) -> tuple[str, list[str]] | BadRow:
    name, sentences = row.get("img_path"), row.get("sentences")
    if not isinstance(name, str) or not name or not isinstance(sentences, list):
        return BadRow(first(dict(row)), expected="an object with img_path and sentences")
    return name, sentences


def _from_bars(path: Path) -> Iterator[tuple[int, tuple[str, list[str]] | BadRow]]:
    for number, line in numbered_lines(path):
        if number == 1:
            continue
        if not isinstance(line, bytes):
            yield number, BadRow(str(line), tail=True)
            return
        cells = line.decode("utf-8", "replace").split("|", 2)
        if len(cells) == 3 and "\ufffd" not in cells[2]:
            yield number, (cells[0].strip(), [cells[2].strip()])
        elif line.strip():
            # One line of the published file (a picture's fourth comment) lacks its second bar.
            yield number, BadRow(first(line), expected="image_name| comment_number| comment, in UTF-8")
