"""Files of sentence pairs: what their corpora have in common, tables, bitexts in two files, and Tatoeba.

PairFile, how to bring your own parallel text; lines with the same group (by default: the same text_a in the same
language) become one group when the set is built:

    pairs.tsv      text_a <TAB> text_b [<TAB> score], all in the two languages that the recipe names
    pairs.jsonl    {"text_a": "…", "lang_a": "en", "text_b": "…", "lang_b": "de", "score": 1.07, "group": "…"}
    pairs.parquet, pairs.arrow, pairs.csv      the same, as columns; other names of columns are options

MarginFile, WikiMatrix and CCMatrix, mined with a margin score of LASER embeddings:

    WikiMatrix.de-en.tsv.gz   score <TAB> sentence in de <TAB> sentence in en, best first, without a header line

MosesPairs, two files whose lines n are translations of each other, bare or in the zip that OPUS hands out. The two
sides lie in one folder; what is no side (README, ids) is left out, and counted:

    TED2020.de-en.de, TED2020.de-en.en    two sides
    de-en.txt.zip                         the same two files, with README and LICENSE

Tatoeba, sentences in hundreds of languages, and links that say which ones are translations, joined twice by id:

    sentences.csv   id <TAB> language (ISO 639-3) <TAB> text
    links.csv       id <TAB> id of a translation
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Final

from cclm.errors import DataError
from cclm.languages import language_tag
from cclm.rows.cells import identifier, language, number, optional, text
from cclm.rows.guard import data_errors, guarded, mistaken, refuse, shown
from cclm.rows.lines import aligned_lines, members_of, plain_stem, plain_suffix, unpacked
from cclm.rows.tables import TABLE_SUFFIXES, Row, read_rows
from cclm.types import TextPair
from shards.corpora.files import (
    NO_LANGUAGE,
    LanguageTag,
    by_tag,
    is_hidden,
    named_files,
    note_left_out,
    note_read,
    one_part,
    part_of_each,
)
from shards.parts import Keyed, LazyRecord, Part, Skipped, each, file_stamp, joined, leave_out, refused

Pairs = Iterator[LazyRecord | Skipped]
"""Records, refusals, and counts of what was skipped."""
Make = Callable[[str, str, Any], Iterable[LazyRecord | Skipped]]
"""(source, place, entry) -> its records."""
_SCORED: Final = ("score", "text_a", "text_b")
_ONE: Final = r"(?:[a-z]{2,3}|[a-z]{5,8})(?:[-_](?:[A-Z]{2}|[A-Z][a-z]{3})|[_@][A-Za-z]+)?"
_PAIRS: Final = tuple(re.compile(rf"(?:.*-)?({one})-({one})") for one in (_ONE, "[A-Za-z]{2,3}"))


def lazy_pair(
    a: tuple[str, str], b: tuple[str, str], source: str, score: float | None = None, group: str = ""
) -> LazyRecord:
    """Return the record of one pair; a blank text raises a refusal (reason text_empty).

    `a`: language and text of the sentence that groups: all its translations are one sample, so that none is ever
    taken for another one's negative. `b`: those of its translation. `group`: the group's name; empty: a hash of `a`.
    """
    (lang_a, text_a), (lang_b, text_b) = a, b
    if not text_a.strip() or not text_b.strip():
        refuse("text_empty", "two texts that are not blank", f"{shown(text_a)} and {shown(text_b)}")
    group = group or hashlib.sha256(f"{lang_a}\t{text_a}".encode()).hexdigest()[:16]
    pair = TextPair(text_a=text_a, lang_a=lang_a, text_b=text_b, lang_b=lang_b, source=source, group=group, score=score)
    return LazyRecord(key=group, source=source, make=partial(list, [pair]))


@dataclass(frozen=True, kw_only=True)
class PairFiles:
    """Files of pairs, one part each."""

    path: Path | Sequence[Path]
    """Files (of `suffixes`, also compressed), folders or patterns."""
    source: str
    """The corpus's name; where the recipe may leave it out, the file's name."""
    suffixes: ClassVar[Sequence[str]] = ()
    """Of the files that are read; none: all are."""

    def parts(self) -> Sequence[Part]:
        """Find the files."""
        files = named_files(self.path, self.suffixes)
        for path in files.values():
            self.check(path)
        return part_of_each(files, self.read)

    def check(self, path: Path) -> None:
        """Raise a ConfigError where the options do not fit a file."""

    def read(self, name: str, path: Path) -> Pairs:
        """Yield the records of a file."""
        raise NotImplementedError

    def records(self, path: Path, entries: Iterable[tuple[str, Any | DataError]], make: Make) -> Pairs:
        """Yield what `make(source, place, entry)` yields of a file's entries; no source: the file's name is it."""
        source = self.source or plain_stem(path)
        return each(entries, partial(make, source), source)


@dataclass(frozen=True, kw_only=True)
class PairFile(PairFiles):
    """Tables of pairs; a row may name its own languages, group and source, unless it is of a TSV without a header."""

    suffixes = TABLE_SUFFIXES
    source: str = ""
    lang_a: LanguageTag = NO_LANGUAGE
    """Language of `text_a`."""
    lang_b: LanguageTag = NO_LANGUAGE
    """Language of `text_b`."""
    header: bool = False
    """A TSV file's first line names its columns (in CSV it always does)."""
    text_a: str = "text_a"
    """Column of the sentence."""
    text_b: str = "text_b"
    """Column of its translation."""
    optional: Sequence[str] = ()
    """Which of the columns lang_a, lang_b, score, group, source a CSV, a TSV with a header, or a Parquet file has."""

    def check(self, path: Path) -> None:
        """The languages of a table whose rows do not name them must be known."""
        named = self.optional if plain_suffix(path) != ".tsv" or self.header else ()
        missing = [name for name in ("lang_a", "lang_b") if not getattr(self, name) and name not in named]
        if missing and plain_suffix(path) != ".jsonl":
            expected = "lang_a and lang_b for a table whose rows do not name them"
            do = "Add both to `options`, or name the columns in `optional`."
            mistaken(expected, f"no {' and no '.join(missing)}", do, path)

    def read(self, name: str, path: Path) -> Pairs:
        """Yield one record a row."""
        columns: Sequence[str] = ()
        needed = [self.text_a, self.text_b, *self.optional]
        if plain_suffix(path) == ".tsv" and not self.header:
            columns, needed = (self.text_a, self.text_b, "score"), [self.text_a, self.text_b]
        return self.records(path, read_rows(name, path, needed=needed, columns=columns), self._pair)

    def _pair(self, source: str, _: str, row: Row) -> Iterator[LazyRecord]:
        text_a, lang_a = text(row.get(self.text_a), self.text_a), language(row.get("lang_a") or self.lang_a)
        text_b, lang_b = text(row.get(self.text_b), self.text_b), language(row.get("lang_b") or self.lang_b)
        source = optional(row.get("source"), "source") or source
        score = None if row.get("score") in (None, "") else number(row["score"], "a score")
        yield lazy_pair((lang_a, text_a), (lang_b, text_b), source, score, identifier(row.get("group"), "group"))


@dataclass(frozen=True, kw_only=True)
class MarginFile(PairFiles):
    """Pairs with a margin score, of which the authors take those above 1.04 (WikiMatrix) or 1.06 (CCMatrix)."""

    suffixes = (".tsv",)
    source: str = ""
    threshold: float = 1.04
    """Pairs with a lower score are refused (reason score_low)."""
    anchor: LanguageTag = NO_LANGUAGE
    """Language that becomes `text_a`, whose translations meet in one group; empty: the file's first one."""
    lang_a: LanguageTag = NO_LANGUAGE
    """Language of the first sentence; empty: as the file's name says (`NAME.de-en.tsv.gz`)."""
    lang_b: LanguageTag = NO_LANGUAGE
    """Language of the second sentence; empty: as the file's name says."""
    columns: Sequence[str] = _SCORED
    """The file's columns: score, text_a, text_b, and any further ones."""

    def check(self, path: Path) -> None:
        """A file's languages must be known."""
        self._languages(path)

    def _languages(self, path: Path) -> tuple[str, str]:
        pair = (self.lang_a, self.lang_b) if self.lang_a and self.lang_b else pair_in(path.name)
        tags = [language_tag(name) or "" for name in pair or ()]
        if len(tags) != 2 or (self.anchor and self.anchor not in tags):
            expected = f"two languages{f', one of them {self.anchor}' if self.anchor else ''}"
            got = " and ".join(tags) or "no pair such as de-en in the file's name"
            mistaken(expected, got, "Name lang_a and lang_b in `options`, or correct `anchor`.", path)
        return tags[0], tags[1]

    def read(self, name: str, path: Path) -> Pairs:
        """Yield one record a line."""
        rows = read_rows(name, path, needed=_SCORED, columns=self.columns)
        return self.records(path, rows, partial(self._pair, self._languages(path)))

    def _pair(self, languages: tuple[str, str], source: str, _: str, row: Row) -> Iterator[LazyRecord]:
        score = number(row["score"], "a score")
        if score < self.threshold:
            do = "Lower `threshold` if such pairs are good enough."
            leave_out("score_low", f"a margin of at least {self.threshold:g}", f"{score:g}", do)
        a, b = (languages[0], text(row["text_a"])), (languages[1], text(row["text_b"]))
        yield lazy_pair(b, a, source, score) if self.anchor == languages[1] else lazy_pair(a, b, source, score)


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


def pair_in(name: str) -> tuple[str, str] | None:
    """Return the two languages, as written, that a file's name holds: the last pair of known ones.

    "WikiMatrix.de-en.tsv.gz" -> ("de", "en"), "bible-uedin.en-zh_TW" -> ("en", "zh_TW"), "giga-fren-en-fr" -> (en, fr)
    """
    for segment in reversed(name.split(".")):
        for pattern in _PAIRS:
            found = pattern.fullmatch(segment)
            if found and language_tag(found[1]) and language_tag(found[2]):
                return found[1], found[2]
    return None


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
