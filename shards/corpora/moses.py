"""OPUS in Moses format: two files whose lines belong together, bare or in the zip that OPUS hands out.

TED2020.de-en.de, TED2020.de-en.en    line n of one is the translation of line n of the other
de-en.txt.zip                         the same two files, with README and LICENSE
"""

from __future__ import annotations

import io
import itertools
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final

from cclm.errors import ConfigError
from shards.corpora.files import COMPRESSIONS, named_files, open_plain, plain_stem, plain_suffix
from shards.corpora.languages import pair_in, tag_of
from shards.corpora.pair_record import lazy_pair
from shards.corpora.refusal import broken_row, broken_tail, refused
from shards.parts import LazyRecord, Part, file_stamp

Side = tuple[Path, str]
"""A file, or a zip and the name of the file in it."""
_BROKEN: Final = (OSError, EOFError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True, kw_only=True)
class MosesPairs:
    """Pairs of line files, one part each."""

    path: Path | Sequence[Path] = ()
    """Zips, folders with the two files, the files themselves, or patterns of them."""
    files: Mapping[str, Path] = field(default_factory=dict)
    """In place of `path`, for files of other names: language -> file, all with as many lines; one part per translation
    of the anchor's language (empty: the first one)."""
    anchor: str = ""
    """Language that becomes `text_a`, whose translations meet in one group; empty: the first of the name's pair."""
    source: str = ""
    """The corpus's name; empty: the files' name before the languages."""

    def parts(self) -> Sequence[Part]:
        """Find the files and their languages."""
        if self.files:
            return self._named_parts()
        files = named_files(self.path, ())
        sides: dict[str, dict[str, Side]] = {}
        for name, path in files.items():
            members = _members(path) if path.suffix == ".zip" else [path.name]
            for member in members:
                found = _side_of(member)
                if found is not None:
                    at = (path, member) if path.suffix == ".zip" else (path, "")
                    sides.setdefault(f"{name}/{found[0]}" if at[1] else found[0], {})[found[1]] = at
        lone = sorted(name for name, of_one in sides.items() if len(of_one) < 2)
        if lone or not sides:
            raise ConfigError(
                expected="two files such as NAME.de-en.de and NAME.de-en.en, or a zip of them",
                got="only one of " + ", ".join(lone[:4]) if lone else ", ".join(itertools.islice(files, 4)),
                do="Correct `path`, or move away what has no partner.",
                where=str(self.path),
            )
        return [self._part(name, of_one) for name, of_one in sorted(sides.items())]

    def _named_parts(self) -> list[Part]:
        anchor = self.anchor or next(iter(self.files))
        if anchor not in self.files or len(self.files) < 2:
            raise ConfigError(
                expected=f"a file in {anchor} and in another language",
                got=", ".join(self.files),
                do="Correct `files` or `anchor`.",
            )
        stamps = {language: file_stamp(path) for language, path in self.files.items()}
        side = {language: (language, (path, "")) for language, path in self.files.items()}
        return [
            Part(
                name=f"{anchor}-{other}",
                read=partial(
                    self.read, f"{self.files[anchor].name}+{self.files[other].name}", side[anchor], side[other]
                ),
                stamp=f"{stamps[anchor]}-{stamps[other]}",
            )
            for other in self.files
            if other != anchor
        ]

    def _part(self, name: str, sides: dict[str, Side]) -> Part:
        first, second = pair_in(name.rsplit("/", 1)[-1]) or ("", "")
        if self.anchor and self.anchor not in (tag_of(first), tag_of(second)):
            raise ConfigError(
                expected=f"a pair with {self.anchor}", got=name, do="Correct `anchor` or `path`.", where=str(self.path)
            )
        if tag_of(second) == self.anchor:
            first, second = second, first
        stamp = "-".join(file_stamp(path) for path, _ in sides.values())
        read = partial(self.read, name, (tag_of(first), sides[first]), (tag_of(second), sides[second]))
        return Part(name=name, read=read, stamp=stamp)

    def read(self, name: str, a: tuple[str, Side], b: tuple[str, Side]) -> Iterator[LazyRecord]:
        """Yield one draft a line; lines that one file has more are refused one by one (reason line_unmatched)."""
        name = name.rsplit("/", 1)[-1]
        source, number = self.source or name.rsplit(".", 1)[0], 0
        with ExitStack() as stack:
            files = [stack.enter_context(_open(path, member, stack)) for path, member in (a[1], b[1])]
            try:
                for number, lines in enumerate(itertools.zip_longest(*files), 1):
                    yield self._draft(name, number, source, (a[0], b[0]), lines)
            except _BROKEN as error:
                yield broken_tail(name, number + 1, source, str(error))

    @staticmethod
    def _draft(
        name: str, number: int, source: str, languages: tuple[str, str], lines: Sequence[bytes | None]
    ) -> LazyRecord:
        where = f"{name}:{number}"
        if None in lines:
            return refused(
                key=where,
                source=source,
                reason="line_unmatched",
                expected=f"as many lines in {languages[0]} as in {languages[1]}",
                got=f"none in {languages[lines.index(None)]}",
                where=where,
            )
        try:
            texts = [line.decode("utf-8").removesuffix("\n").removesuffix("\r") for line in lines if line is not None]
        except UnicodeDecodeError as error:
            return broken_row(name, number, source, str(error), "a line in UTF-8")
        return lazy_pair(
            text_a=texts[0], lang_a=languages[0], text_b=texts[1], lang_b=languages[1], source=source, where=where
        )


def _side_of(member: str) -> tuple[str, str] | None:
    """Return ("NAME.de-en", "de") of a file NAME.de-en.de or NAME.de-en.de.gz; None for README, ids and the like."""
    name = member.rsplit("/", 1)[-1]
    path = Path(name)
    language = plain_suffix(path).lstrip(".") if path.suffix in COMPRESSIONS else path.suffix.lstrip(".")
    stem = plain_stem(path)
    pair = pair_in(stem)
    return (stem, language) if pair and language in pair else None


def _members(path: Path) -> Iterable[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (OSError, zipfile.BadZipFile) as error:
        raise ConfigError(
            expected="a readable zip", got=str(error), do="Fetch the file again.", where=str(path)
        ) from error


def _open(path: Path, member: str, stack: ExitStack) -> BinaryIO:
    if not member:
        return open_plain(path)
    archive = stack.enter_context(zipfile.ZipFile(path))
    return io.BufferedReader(archive.open(member))  # type: ignore[type-var]
