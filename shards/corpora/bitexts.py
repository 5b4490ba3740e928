"""Bitexts whose sides lie apart: OPUS in Moses format, and Tatoeba.

Moses: two files whose lines n are translations of each other, bare or in the zip that OPUS hands out. The two sides of
a pair lie in one folder; what is no side (README, ids) is left out, and counted.

TED2020.de-en.de, TED2020.de-en.en    two sides
de-en.txt.zip                         the same two files, with README and LICENSE

Tatoeba: sentences in hundreds of languages, and links that say which ones are translations, joined twice by id:

sentences.csv   id <TAB> language (ISO 639-3) <TAB> text
links.csv       id <TAB> id of a translation
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from cclm.errors import DataError
from cclm.languages import language_tag
from cclm.rows.cells import text
from cclm.rows.guard import data_errors, guarded, mistaken
from cclm.rows.lines import aligned_lines, members_of, unpacked
from cclm.rows.tables import Row, read_rows
from shards.corpora.cells import NO_LANGUAGE, LanguageTag, by_tag, pair_in
from shards.corpora.entries import Keyed, each, joined, refused
from shards.corpora.files import is_hidden, named_files, note_left_out, note_read, one_part
from shards.corpora.pair_file import lazy_pair
from shards.parts import LazyRecord, Part, Skipped, file_stamp

Side = tuple[str, Path, str]
"""Language, file, and the name inside it if it is a zip."""
_TABLES: Final = (".csv", ".tsv")


@dataclass(frozen=True, kw_only=True)
class MosesPairs:
    """Pairs of line files, one part each."""

    path: Path | Sequence[Path] = ()
    """Zips, folders with the two files, the files themselves, or patterns of them."""
    files: Mapping[str, Path] = field(default_factory=dict)
    """In place of `path`, for files of other names: language -> file, all with as many lines; one part per translation
    of the anchor's language (empty: the first one)."""
    anchor: LanguageTag = NO_LANGUAGE
    """Language that becomes `text_a`, whose translations meet in one group; empty: the first of the name's pair."""
    source: str = ""
    """The corpus's name; empty: the files' name before the languages."""

    def parts(self) -> Sequence[Part]:
        """Find the files and their languages."""
        if self.files:
            return self._named_parts()
        pairs: dict[tuple[Path, str], dict[str, tuple[str, Path, str]]] = {}
        parts: list[Part] = []
        for name, path in named_files(self.path, ()).items():
            try:
                with data_errors(path.name, "file_broken", "a readable zip"):
                    members = members_of(path)
            except DataError as error:
                lost = refused(error, name, self.source or path.stem)
                parts.append(Part(name=name, read=partial(iter, [lost]), stamp=file_stamp(path)))
                continue
            for member in members:
                place = path / member
                side = None if is_hidden(member) else _side_of(place)
                if side is None:
                    note_left_out(place, place.suffix or place.name, f"{name}/{member}" if member else "")
                else:
                    pairs.setdefault((place.parent, side[0]), {})[side[1]] = (name, path, member)
        lone = sorted(
            f"{name}/{member}".rstrip("/")
            for of_one in pairs.values()
            if len(of_one) < 2
            for name, _, member in of_one.values()
        )
        if lone or not (pairs or parts):
            expected = "two files such as NAME.de-en.de and NAME.de-en.en in one folder, or a zip of them"
            got = "only one side: " + ", ".join(lone[:4]) if lone else "no file of such a name"
            mistaken(expected, got, "Correct `path`, or move away what has no partner.", self.path)
        return [*parts, *(self._part(stem, of_one) for (_, stem), of_one in sorted(pairs.items()))]

    def _named_parts(self) -> list[Part]:
        files = by_tag(self.files, "files")
        note_read(files.values())
        anchor = self.anchor or next(iter(files))
        if anchor not in files or len(files) < 2:
            mistaken(f"a file in {anchor} and in another language", ", ".join(files), "Correct `files` or `anchor`.")
        a = (anchor, files.pop(anchor), "")
        return [
            self._read_part(f"{anchor}-{other}", f"{a[1].name}+{path.name}", a, (other, path, ""))
            for other, path in files.items()
        ]

    def _part(self, stem: str, sides: Mapping[str, tuple[str, Path, str]]) -> Part:
        languages = pair_in(stem) or ("", "")
        a, b = ((language_tag(language) or "", *sides[language][1:]) for language in languages)
        if self.anchor and self.anchor not in (a[0], b[0]):
            mistaken(f"a pair with {self.anchor}", stem, "Correct `anchor` or `path`.", self.path)
        file_name, _, member = sides[languages[0]]
        part = f"{file_name}/{Path(member).with_name(stem)}" if member else str(Path(file_name).with_name(stem))
        return self._read_part(part, part, *((b, a) if b[0] == self.anchor else (a, b)))

    def _read_part(self, name: str, place: str, a: Side, b: Side) -> Part:
        stamp = "-".join(file_stamp(path) for path in dict.fromkeys((a[1], b[1])))
        return Part(name=name, read=partial(self.read, place, a, b), stamp=stamp)

    def read(self, name: str, a: Side, b: Side) -> Iterator[LazyRecord]:
        """Yield one record a line; lines that one file has more are refused one by one (reason line_unmatched)."""
        source = self.source or name.rsplit("/", 1)[-1].rsplit(".", 1)[0]
        lines = guarded(name, aligned_lines([a, b]))
        return each(lines, lambda _, both: [lazy_pair((a[0], both[0]), (b[0], both[1]), source)], source)


def _side_of(path: Path) -> tuple[str, str] | None:
    """Return ("NAME.de-en", "de") of a file NAME.de-en.de or NAME.de-en.de.gz; None for README, ids and the like."""
    plain = unpacked(path)
    pair, language = pair_in(plain.stem), plain.suffix.lstrip(".")
    return (plain.stem, language) if pair and language in pair else None


@dataclass(frozen=True, kw_only=True)
class Tatoeba:
    """The translations of one language's sentences: one part."""

    sentences: Path | Sequence[Path]
    """sentences.csv, or the exports of single languages; also .bz2."""
    links: Path | Sequence[Path]
    """links.csv, or the exports of single pairs; a link holds in both directions."""
    languages: Mapping[str, LanguageTag]
    """The site's code -> tag, for example {eng: en, deu: de}: sentences in others are skipped, and counted."""
    anchor: LanguageTag
    """Language of `text_a`, a tag."""
    source: str = "tatoeba"
    """The corpus's name."""

    def parts(self) -> Sequence[Part]:
        """Find the files."""
        if self.anchor not in self.languages.values():
            got = f"{self.anchor!r}, not one of {', '.join(self.languages.values())}"
            mistaken("an anchor among the languages", got, "Correct `anchor` or `languages`.")
        files = [*named_files(self.sentences, _TABLES).values(), *named_files(self.links, _TABLES).values()]
        return one_part("pairs", self.read, files)

    def read(self) -> Iterator[LazyRecord | Skipped]:
        """Yield one record per sentence in the anchor's language and translation of it."""
        sentences = self._rows(self.sentences, ("id", "language", "text"), self._sentence)
        links = self._rows(self.links, ("id", "other"), _link)
        anchored = joined(itertools.chain(sentences, links), self._anchored, self.source)
        return joined(anchored, self._pairs, self.source)

    def _pairs(self, identity: str, found: Sequence[Any]) -> Iterator[LazyRecord]:
        anchors = dict.fromkeys(item for item in found if item[0] == "anchor")
        others = [item for item in found if item[0] == "sentence"]
        pairs = ((f"{id_a}-{identity}", (text_a, *other)) for _, text_a, id_a in anchors for _, *other in others)
        return each(pairs, lambda _, pair: [lazy_pair((self.anchor, pair[0]), pair[1:], self.source)], self.source)

    def _anchored(self, identity: str, found: Sequence[Any]) -> Iterator[tuple[str, Any]]:
        """Yield the other languages' sentences by their id, and the anchor's sentences by the ids of translations."""
        links = [item[1] for item in found if item[0] == "link"]
        for _, tag, sentence in (item for item in found if item[0] == "sentence"):
            if tag == self.anchor:
                yield from ((other, ("anchor", sentence, identity)) for other in links)
            else:
                yield identity, ("sentence", tag, sentence)

    def _rows(self, paths: Path | Sequence[Path], columns: Sequence[str], make: Callable[[str, Row], Keyed]) -> Keyed:
        """Yield what `make(place, row)` yields; files are ".csv" by name, but cells stand between tabs, not quoted."""
        for name, path in named_files(paths, _TABLES).items():
            rows = read_rows(name, path, needed=columns, columns=columns, tabs=True)
            yield from each(rows, make, self.source)

    def _sentence(self, _: str, row: Row) -> Keyed:
        code = text(row["language"] or None, "a language")
        if code in self.languages:
            yield row["id"], ("sentence", self.languages[code], text(row["text"]))
        else:
            yield Skipped(source=self.source, rows={code: 1})


def _link(_: str, row: Row) -> Keyed:
    yield row["id"], ("link", row["other"])
    yield row["other"], ("link", row["id"])
