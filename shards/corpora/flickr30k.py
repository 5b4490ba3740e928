"""Flickr30k in its three forms, and IGLUE's xFlickr&CO, which adds COCO images to it.

results_20130124.token   1000092795.jpg#0 <TAB> Two young guys …
results.csv              image_name| comment_number| comment         (a header, cells between "|")
train_ann.jsonl          {"sentences": ["…"], "id": "1000092795", "img_path": "1000092795.jpg"}    (IGLUE)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from cclm.errors import DataError
from shards.corpora.cells import gathered, listed, text
from shards.corpora.files import files_by_language, plain_suffix
from shards.corpora.image_corpus import ImageCorpus
from shards.corpora.image_row import ImageRow, folders_of, image_in, key_of
from shards.corpora.lines import numbered_lines
from shards.corpora.refusal import each, guarded, joined
from shards.corpora.rows import bad_row, read_rows
from shards.guard import shown
from shards.parts import LazyRecord, Part, Skipped

_SUFFIXES: Final = (".token", ".txt", ".csv", ".jsonl")


@dataclass(frozen=True, kw_only=True)
class Flickr30k(ImageCorpus):
    """One part, with one record per image, all of its languages together."""

    captions: Mapping[str, Path | Sequence[Path]]
    """Language -> annotation files (.token, .txt, .csv, .jsonl), folders or patterns."""
    images: Path | Sequence[Path]
    """Folders of images; for xFlickr&CO both Flickr30k's and COCO's val2014."""
    source: str = "flickr30k"
    """The corpus's name."""

    def parts(self) -> Sequence[Part]:
        """Find the files."""
        folders_of(self.images)
        files = [path for _, path in files_by_language(self.captions, _SUFFIXES)]
        return self.part_of_all("captions", self.rows, files)

    def rows(self) -> Iterator[ImageRow | LazyRecord | Skipped]:
        """Yield the images."""
        return joined(self._captions(), partial(self._row, folders_of(self.images)), self.source)

    def _row(self, folders: Sequence[Path], name: str, items: Sequence[Any]) -> Iterator[ImageRow]:
        yield self.image_row(
            key=key_of(name),
            image=image_in(folders, name),
            captions=gathered(items),
            identity=Path(name).stem,
            ids={"image": name},
            where=f"{self.source} {name}",
        )

    def _captions(self) -> Iterator[tuple[str, Any] | LazyRecord]:
        """Yield (the image's name, (language, texts))."""
        for language, path in files_by_language(self.captions, _SUFFIXES):
            read, of_form = _FORMS.get(plain_suffix(path), (read_numbered_captions, _of_pair))
            yield from each(read(path.name, path), partial(of_form, language), self.source)


def read_numbered_captions(name: str, path: Path) -> Iterator[tuple[str, tuple[str, str] | DataError]]:
    """Yield ("NAME:NUMBER", (the image's name, caption))."""
    return guarded(name, _captions(path))


def _captions(path: Path) -> Iterator[tuple[int, tuple[str, str] | DataError]]:
    for number, line in numbered_lines(path):
        if isinstance(line, DataError):
            yield number, line
            continue
        name, tab, caption = line.partition("\t")
        image, hash_sign, _ = name.rpartition("#")
        if tab and hash_sign and image:
            yield number, (image, caption)
        elif line.strip():
            yield number, bad_row("NAME#N, a tab, and a caption", "a line of another form")


Named = Iterator[tuple[str, tuple[str, list[str]]]]


def _of_pair(language: str, _: str, pair: tuple[str, str]) -> Named:
    yield pair[0], (language, [pair[1]])


def _of_iglue(language: str, _: str, row: Mapping[str, Any]) -> Named:
    sentences = listed(row.get("sentences", ""), "a list of sentences")
    yield text(row.get("img_path") or None, "img_path"), (language, [text(one, "a sentence") for one in sentences])


def _with_bars(path: Path) -> Iterator[tuple[int, tuple[str, str] | DataError]]:
    for number, line in numbered_lines(path):
        if isinstance(line, DataError):
            yield number, line
        elif number > 1 and line.strip():
            cells = line.split("|", 2)
            # One line of the published file (an image's fourth comment) lacks its second bar.
            broken = bad_row("image_name| comment_number| comment", shown(line))
            yield number, (cells[0].strip(), cells[2].strip()) if len(cells) == 3 else broken


_FORMS: Final[Mapping[str, tuple[Any, Any]]] = {
    ".jsonl": (partial(read_rows, needed=()), _of_iglue),
    ".csv": (lambda name, path: guarded(name, _with_bars(path)), _of_pair),
}
"""Suffix -> (how its entries are read, what each says); other files hold `NAME#N <TAB> caption`."""
