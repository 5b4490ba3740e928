"""Multi30K, XTD10 and their like: a list of images, and files whose line n is a caption of image n.

image_splits/train.txt   1000092795.jpg
raw/train.de.gz          Zwei junge weiße Männer sind im Freien in der Nähe vieler Büsche.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cclm.errors import DataError
from shards.corpora.cells import gathered
from shards.corpora.files import files_by_language, note_read
from shards.corpora.image_corpus import ImageCorpus
from shards.corpora.image_row import ImageRow, folders_of, image_in, key_of
from shards.corpora.lines import aligned_lines, open_plain
from shards.corpora.refusal import each, guarded
from shards.parts import LazyRecord, Part


@dataclass(frozen=True, kw_only=True)
class AlignedLines(ImageCorpus):
    """One part, with one record per image."""

    names: Path
    """The list of images, one name a line."""
    captions: Mapping[str, Path | Sequence[Path]]
    """Language -> files aligned with the list (also .gz); several files give several captions (Multi30K's task 2)."""
    images: Path | Sequence[Path]
    """Folders of images."""
    source: str = "multi30k"
    """The corpus's name."""

    def parts(self) -> Sequence[Part]:
        """Find the files."""
        folders_of(self.images)
        note_read([self.names])
        files = [self.names, *(path for _, path in self._files())]
        return self.part_of_all(self.names.name, self.rows, files)

    def _files(self) -> list[tuple[str, Path]]:
        return files_by_language(self.captions, ())

    def rows(self) -> Iterator[ImageRow | LazyRecord]:
        """Yield one image a line; lines that a file has more or less than the list are refused (line_unmatched)."""
        row = partial(self._row, folders_of(self.images))
        return each(guarded(self.names.name, self._lines()), row, self.source)

    def _lines(self) -> Iterator[tuple[int, list[str] | DataError]]:
        with ExitStack() as stack:
            paths = [self.names, *(path for _, path in self._files())]
            files = [stack.enter_context(open_plain(path)) for path in paths]
            yield from aligned_lines(files, ["the list of images", *(path.name for path in paths[1:])])

    def _row(self, folders: Sequence[Path], place: str, lines: Sequence[str]) -> Iterator[ImageRow]:
        name = lines[0].strip()
        languages = [language for language, _ in self._files()]
        yield self.image_row(
            key=key_of(name),
            image=image_in(folders, name),
            captions=gathered((tag, [text]) for tag, text in zip(languages, lines[1:], strict=True)),
            identity=Path(name).stem,
            ids={"image": name},
            where=place,
        )
