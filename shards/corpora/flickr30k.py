"""Captions that name images: Flickr30k in its three forms, IGLUE's xFlickr&CO with COCO images, too; and Multi30K.

results_20130124.token   1000092795.jpg#0 <TAB> Two young guys …
results.csv              image_name| comment_number| comment         (a header, cells between "|")
train_ann.jsonl          {"sentences": ["…"], "id": "1000092795", "img_path": "1000092795.jpg"}    (IGLUE)

Multi30K, XTD10 and their like have a list of images, and files whose line n is a caption of image n:

image_splits/train.txt   1000092795.jpg
raw/train.de.gz          Zwei junge weiße Männer sind im Freien in der Nähe vieler Büsche.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from cclm.annotations.captions import numbered_captions, sentences_of
from cclm.annotations.images import key_of
from cclm.rows.cells import gathered
from cclm.rows.guard import guarded
from cclm.rows.lines import aligned_lines, plain_suffix
from cclm.rows.tables import read_rows
from shards.corpora.entries import Keyed, each, joined
from shards.corpora.files import files_by_language, note_read
from shards.corpora.image_corpus import ImageRow, ImageRows, NamedImages
from shards.parts import Part

_SUFFIXES: Final = (".token", ".txt", ".csv", ".jsonl")


@dataclass(frozen=True, kw_only=True)
class _Captioned(NamedImages):
    """One part, with one record per image, all of its languages together."""

    captions: Mapping[str, Path | Sequence[Path]]
    """Language -> files (also compressed), folders or patterns."""

    def _image(self, name: str, captions: Sequence[tuple[str, Sequence[str]]], where: str = "") -> Iterator[ImageRow]:
        yield self.image_row(
            key=key_of(name),
            image=self.image_named(name),
            captions=gathered(captions),
            identity=Path(name).stem,
            ids={"image": name},
            where=where or f"{self.source} {name}",
        )


@dataclass(frozen=True, kw_only=True)
class Flickr30k(_Captioned):
    """Files .token, .txt, .csv, .jsonl. For xFlickr&CO, `images` are both Flickr30k's and COCO's val2014."""

    source: str = "flickr30k"

    def parts(self) -> Sequence[Part]:
        """Find the files."""
        files = [path for _, path in files_by_language(self.captions, _SUFFIXES)]
        return self.part_of_all("captions", self.rows, files)

    def rows(self) -> ImageRows:
        """Yield the images."""
        return joined(self._captions(), self._image, self.source)

    def _captions(self) -> Keyed:
        """Yield (the image's name, (language, texts))."""
        for language, path in files_by_language(self.captions, _SUFFIXES):
            if plain_suffix(path) == ".jsonl":
                yield from each(read_rows(path.name, path, needed=()), partial(_of_iglue, language), self.source)
            else:
                yield from each(numbered_captions(path.name, path), partial(_of_pair, language), self.source)


def _of_pair(language: str, _: str, pair: tuple[str, str]) -> Keyed:
    yield pair[0], (language, [pair[1]])


def _of_iglue(language: str, _: str, row: Mapping[str, Any]) -> Keyed:
    name, sentences = sentences_of(row)
    yield name, (language, sentences)


@dataclass(frozen=True, kw_only=True)
class AlignedLines(_Captioned):
    """Files aligned with a list of images; several of a language give several captions (Multi30K's task 2)."""

    names: Path
    """The list of images, one name a line."""
    source: str = "multi30k"

    def parts(self) -> Sequence[Part]:
        """Find the files."""
        note_read([self.names])
        files = [path for _, path in files_by_language(self.captions, ())]
        return self.part_of_all(self.names.name, self.rows, [self.names, *files])

    def rows(self) -> ImageRows:
        """Yield one image a line; lines that a file has more or less than the list are refused (line_unmatched)."""
        captions = files_by_language(self.captions, ())
        files = [("the list of images", self.names, ""), *((path.name, path, "") for _, path in captions)]
        row = partial(self._row, [language for language, _ in captions])
        return each(guarded(self.names.name, aligned_lines(files)), row, self.source)

    def _row(self, languages: Sequence[str], place: str, lines: Sequence[str]) -> Iterator[ImageRow]:
        captions = [(tag, [caption]) for tag, caption in zip(languages, lines[1:], strict=True)]
        return self._image(lines[0].strip(), captions, place)
