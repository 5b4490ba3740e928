"""What can be embedded: a folder of pictures, files of texts, a shard set. Units in a fixed order, each with its rows.

A unit is what is read at once: a picture file, a line, a sample. The order decides where a row lands, so that a killed
`cclm embed` goes on where it was and two runs write the same rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from cclm.errors import ConfigError
from cclm.shardfile.reader import ShardSet
from cclm.types import View

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
"""Endings of picture files; case does not matter."""
TEXTS = (".txt",)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One thing to embed."""

    key: str
    """A path below the folder, "file:line", or a sample's key (texts of a sample: "key/language/number")."""
    text: str | None = None
    """The text; None: a picture."""
    language: str | None = None
    """Of the text, where it is known."""


class EmbedSource(Protocol):
    """Units in a fixed order."""

    @property
    def fingerprint(self) -> str:
        """Changes when units are added, removed or renamed."""
        ...

    def __len__(self) -> int: ...

    def rows(self, unit: int) -> list[Row]:
        """What a unit gives."""
        ...

    def picture(self, unit: int) -> bytes:
        """The encoded picture of a unit that has one."""
        ...


@dataclass(frozen=True)
class Files:
    """Pictures (one unit a file) and texts (one unit a line that is not blank) of a folder, or one such file."""

    root: Path
    _units: list[tuple[Path, int | None, str]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """List everything; raises ConfigError if there is nothing."""
        paths = [self.root] if self.root.is_file() else sorted(path for path in self.root.rglob("*") if path.is_file())
        units: list[tuple[Path, int | None, str]] = []
        for path in paths:
            if path.suffix.lower() in PICTURES:
                units.append((path, None, ""))
            elif path.suffix.lower() in TEXTS:
                lines = path.read_text(encoding="utf-8").splitlines()
                units += [(path, number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
        if not units:
            raise ConfigError(
                where=str(self.root),
                expected=f"pictures ({', '.join(PICTURES)}) or texts (.txt, one a line)",
                got="no such file in it" if self.root.exists() else "nothing at this path",
                do="Give the folder that holds them, or a shard set.",
            )
        object.__setattr__(self, "_units", units)

    @property
    def fingerprint(self) -> str:
        """Of names, sizes and texts."""
        listed = [f"{self._name(path)}\t{number}\t{text or path.stat().st_size}" for path, number, text in self._units]
        return _digest(listed)

    def __len__(self) -> int:
        return len(self._units)

    def rows(self, unit: int) -> list[Row]:
        """One row."""
        path, number, text = self._units[unit]
        name = self._name(path)
        return [Row(key=name)] if number is None else [Row(key=f"{name}:{number}", text=text)]

    def picture(self, unit: int) -> bytes:
        """The file."""
        return self._units[unit][0].read_bytes()

    def _name(self, path: Path) -> str:
        return path.name if path == self.root else path.relative_to(self.root).as_posix()


@dataclass(frozen=True)
class Shards:
    """The samples of a shard set: pictures (and, if wanted, their captions), or the sentences of pairs."""

    root: Path
    with_captions: bool = False
    """Embed captions beside the pictures."""
    languages: Sequence[str] = ()
    """Of the texts to take; empty: all."""
    _set: ShardSet = field(init=False, repr=False)
    _places: list[tuple[int, int]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Read the manifest."""
        shards = ShardSet(self.root)
        object.__setattr__(self, "_set", shards)
        sizes = enumerate(shards.samples_per_shard)
        object.__setattr__(self, "_places", [(shard, sample) for shard, size in sizes for sample in range(size)])

    @property
    def fingerprint(self) -> str:
        """Of the shards' checksums and of what is taken."""
        taken = f"captions={self.with_captions} languages={','.join(sorted(self.languages))}"
        return _digest([taken, *(repr(shard) for shard in self._set.manifest.shards)])

    def __len__(self) -> int:
        return len(self._places)

    def rows(self, unit: int) -> list[Row]:
        """A picture and its captions, or every sentence of a group once."""
        if self._set.view is View.IMAGE_TEXT:
            record = self._set.image_text(*self._places[unit])
            captions = record.captions.items() if self.with_captions else ()
            return [Row(key=record.key), *self._texts(record.key, captions)]
        pairs = self._set.text_group(*self._places[unit])
        sides = [(pair.lang_a, pair.text_a) for pair in pairs] + [(pair.lang_b, pair.text_b) for pair in pairs]
        by_language: dict[str, list[str]] = {}
        for language, text in dict.fromkeys(sides):
            by_language.setdefault(language, []).append(text)
        return list(self._texts(pairs[0].group, by_language.items()))

    def _texts(self, key: str, texts: object) -> Iterator[Row]:
        for language, listed in dict(texts).items():  # type: ignore[call-overload]
            if not self.languages or language in self.languages:
                for number, text in enumerate(listed):
                    yield Row(key=f"{key}/{language}/{number}", text=text, language=language)

    def picture(self, unit: int) -> bytes:
        """As it lies in the shard."""
        return self._set.image_text(*self._places[unit]).image


def find_source(path: Path, *, with_captions: bool = False, languages: Sequence[str] = ()) -> EmbedSource:
    """A shard set if there is a manifest, else files.

    Raises:
        ConfigError: nothing to embed.
        DataError: a shard set that cannot be read.
    """
    if (path / "manifest.json").is_file():
        return Shards(path, with_captions, tuple(languages))
    return Files(path)


def _digest(lines: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
