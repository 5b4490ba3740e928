"""What can be embedded: a folder of images, files of texts, a shard set. Units in a fixed order, each with its rows.

A unit is what is read at once: an image file, a line, a sample. The order decides where a row lands, so that a killed
`cclm embed` goes on where it was and two runs write the same rows.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias

from cclm.errors import Cause, ConfigError, DataError
from cclm.files.lines import text_lines
from cclm.run.causes import cause_of
from cclm.shardfile.reader import ShardSet
from cclm.types import ImageTextRecord, TextPair, View

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
"""Endings of image files; case does not matter."""
TEXTS = (".txt",)
NOT_THERE = frozenset({"tar_missing", "tar_unreadable", "index_missing", "index_unreadable"})
"""Reasons of a whole shard that another time may not have: nothing is written of it, and the command ends."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One thing to embed."""

    key: str
    """A path below the folder, "file:line", or a sample's key (texts of a sample: "key/language/number")."""
    text: str | None = None
    """The text; None: an image."""
    language: str | None = None
    """Of the text, where it is known."""
    error: str | None = None
    """Why it cannot be read, where that is known."""


class Files:
    """Images (one unit a file) and texts (one unit a line that is not blank) of a folder, or one such file.

    Raises ConfigError: there is nothing, or a text that is not UTF-8.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.left_out: Counter[str] = Counter()
        """Files that are neither, by ending; links to folders, which are not followed."""
        self._units: list[tuple[Path, int | None, str]] = []
        for path in [root] if root.is_file() else sorted(root.rglob("*")):
            if not path.is_file():
                if path.is_symlink() or not path.is_dir():
                    self.left_out["link to a folder" if path.is_dir() else "no regular file"] += 1
            elif self._name(path).encode("utf-8", "replace").decode() != self._name(path):
                self.left_out["name that is not UTF-8"] += 1
            elif path.suffix.lower() in IMAGES:
                self._units.append((path, None, ""))
            elif path.suffix.lower() in TEXTS:
                numbered = ((number, line.strip()) for number, line in enumerate(text_lines(path), 1))
                self._units += [(path, number, line) for number, line in numbered if line]
            else:
                self.left_out[path.suffix.lower() or "no ending"] += 1
        if not self._units:
            raise ConfigError(
                where=str(root),
                expected=f"images ({', '.join(IMAGES)}) or texts (.txt, one a line)",
                got="no such file in it" if root.exists() else "nothing at this path",
                do="Give the folder that holds them, or a shard set.",
            )

    @property
    def fingerprint(self) -> str:
        """Of names, sizes and texts."""
        listed = [f"{self._name(path)}\t{number}\t{text or path.stat().st_size}" for path, number, text in self._units]
        return hashlib.sha256("\n".join(listed).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._units)

    def rows(self, unit: int) -> list[Row]:
        """One row."""
        path, number, text = self._units[unit]
        name = self._name(path)
        return [Row(key=name)] if number is None else [Row(key=f"{name}:{number}", text=text)]

    def image(self, unit: int) -> bytes:
        """Return the file (DataError: it cannot be read; OSError: not for the moment, as when the disk has a fault)."""
        path = self._units[unit][0]
        try:
            return path.read_bytes()
        except OSError as error:
            if cause_of(error) is Cause.TRANSIENT:
                raise
            raise DataError(
                reason="image_missing", expected="a readable file", got=str(error.strerror), do="", where=str(path)
            ) from error

    def _name(self, path: Path) -> str:
        return path.name if path == self.root else path.relative_to(self.root).as_posix()


class Shards:
    """The samples of a shard set: images (and, if wanted, their captions), or the sentences of pairs.

    `languages`: of the texts to take; empty: all.
    """

    left_out: Mapping[str, int] = MappingProxyType({})

    def __init__(self, root: Path, with_captions: bool = False, languages: Sequence[str] = ()) -> None:
        self.root, self.with_captions, self.languages = root, with_captions, languages
        self._set = ShardSet(root)
        sizes = enumerate(self._set.samples_per_shard)
        self._places = [(shard, sample) for shard, size in sizes for sample in range(size)]

    @property
    def fingerprint(self) -> str:
        """Of the shards' checksums and of what is taken."""
        return self._set.manifest.fingerprint(self.with_captions, self.languages)

    def __len__(self) -> int:
        return len(self._places)

    def rows(self, unit: int) -> list[Row]:
        """An image and its captions, or every sentence of a group once; one row of what is damaged (DataError: a shard
        is not there now; it may be another time (`NOT_THERE`)).
        """
        try:
            return self._rows(unit)
        except DataError as error:
            if error.reason in NOT_THERE:
                raise
            text = None if self._set.view is View.IMAGE_TEXT else ""
            return [Row(key=self._key(unit), text=text, error=f"{error.reason}: {error}")]

    def _key(self, unit: int) -> str:
        try:
            return self._set.locate(*self._places[unit]).key
        except DataError:  # the index itself is broken
            return f"#{unit}"

    def _rows(self, unit: int) -> list[Row]:
        if self._set.view is View.IMAGE_TEXT:
            record = self.record(unit)
            captions = record.captions if self.with_captions else {}
            return [Row(key=record.key), *self._texts(record.key, captions)]
        pairs = self.pairs(unit)
        sides = [(pair.lang_a, pair.text_a) for pair in pairs] + [(pair.lang_b, pair.text_b) for pair in pairs]
        by_language: dict[str, list[str]] = {}
        for language, text in dict.fromkeys(sides):
            by_language.setdefault(language, []).append(text)
        return list(self._texts(pairs[0].group, by_language))

    def _texts(self, key: str, texts: Mapping[str, Sequence[str]]) -> Iterator[Row]:
        for language, listed in texts.items():
            if not self.languages or language in self.languages:
                for number, text in enumerate(listed):
                    yield Row(key=f"{key}/{language}/{number}", text=text, language=language)

    @property
    def view(self) -> View:
        """What its samples are."""
        return self._set.view

    def record(self, unit: int) -> ImageTextRecord:
        """An image with its captions."""
        return self._set.image_text(*self._places[unit])

    def pairs(self, unit: int) -> Sequence[TextPair]:
        """The sentence pairs of a group."""
        return self._set.text_group(*self._places[unit])

    def image(self, unit: int) -> bytes:
        """As it lies in the shard."""
        return self.record(unit).image


EmbedSource: TypeAlias = Files | Shards
"""Units in a fixed order: `rows` of each, and the encoded `image` of one that has it. `fingerprint` changes when units
are added, removed or renamed."""


def find_source(path: Path, *, with_captions: bool = False, languages: Sequence[str] = ()) -> EmbedSource:
    """A shard set if there is a manifest, else files.

    Raises:
        ConfigError: nothing to embed.
        DataError: a shard set that cannot be read.
    """
    if (path / "manifest.json").is_file():
        return Shards(path, with_captions, tuple(languages))
    return Files(path)
