"""Multi30K, XTD10 and their like: a list of pictures, and files whose line n is a caption of picture n.

image_splits/train.txt   1000092795.jpg
raw/train.de.gz          Zwei junge weiße Männer sind im Freien in der Nähe vieler Büsche.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from shards.corpora.files import BROKEN_STREAM, files_by_language, open_plain
from shards.corpora.image_files import folders_of, picture_in
from shards.corpora.image_row import ImageRow, key_of, lazy_images
from shards.corpora.refusal import broken_row, broken_tail, refused
from shards.corpora.translations import Translations, with_translations
from shards.parts import LazyRecord, Part, file_stamp


@dataclass(frozen=True, kw_only=True)
class AlignedLines:
    """One part, with one draft per picture."""

    names: Path
    """The list of pictures, one name a line."""
    captions: Mapping[str, Path | Sequence[Path]]
    """Language -> files aligned with the list (also .gz); several files give several captions (Multi30K's task 2)."""
    images: Path | Sequence[Path]
    """Folders of pictures."""
    translations: Sequence[Translations] = ()
    """Further captions, joined on `image` (the name)."""
    source: str = "multi30k"
    """The corpus's name."""
    licence: str = "unknown"
    """SPDX tag of the pictures."""

    def parts(self) -> Sequence[Part]:
        """Find the files."""
        folders_of(self.images)
        files = [self.names, *(path for _, path in self._files())]
        files += [path for one in self.translations for path in one.files().values()]
        return [Part(name=self.names.name, read=self.read, stamp="-".join(map(file_stamp, files)))]

    def _files(self) -> list[tuple[str, Path]]:
        return files_by_language(self.captions, ())

    def read(self) -> Iterator[LazyRecord]:
        """Yield one draft a line; lines that a file has more or less than the list are refused (line_unmatched)."""
        return lazy_images(with_translations(self.rows(), self.translations, self.source))

    def rows(self) -> Iterator[ImageRow | LazyRecord]:
        """Yield the pictures, before they are read."""
        folders, languages = folders_of(self.images), [language for language, _ in self._files()]
        number, list_name = 0, self.names.name
        with ExitStack() as stack:
            files = [stack.enter_context(open_plain(path)) for path in (self.names, *(p for _, p in self._files()))]
            try:
                for number, lines in enumerate(itertools.zip_longest(*files), 1):
                    yield self._row(number, lines, languages, folders)
            except BROKEN_STREAM as error:
                yield broken_tail(list_name, number + 1, self.source, str(error))

    def _row(
        self, number: int, lines: Sequence[bytes | None], languages: Sequence[str], folders: Sequence[Path]
    ) -> ImageRow | LazyRecord:
        where = f"{self.names.name}:{number}"
        if None in lines:
            short = lines.index(None)
            return refused(
                key=where,
                source=self.source,
                reason="line_unmatched",
                expected="as many captions as pictures",
                got=f"the end of {languages[short - 1] if short else 'the list'} before line {number}",
                where=where,
            )
        try:
            name, *texts = (line.decode("utf-8").removesuffix("\n").removesuffix("\r") for line in lines if line)
        except UnicodeDecodeError as error:
            return broken_row(self.names.name, number, self.source, str(error), "lines in UTF-8")
        captions: dict[str, list[str]] = {}
        for language, text in zip(languages, texts, strict=True):
            captions.setdefault(language, []).append(text)
        name = name.strip()
        return ImageRow(
            key=key_of(name),
            image=picture_in(folders, name),
            captions=captions,
            source=self.source,
            licence=self.licence,
            identity=Path(name).stem,
            ids={"image": name},
            where=where,
        )
