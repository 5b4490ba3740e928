"""Files of sentence pairs: what their corpora have in common, and the tables among them.

PairFile, how to bring your own parallel text; lines with the same group (by default: the same text_a in the same
language) become one group when the set is built:

    pairs.tsv      text_a <TAB> text_b [<TAB> score], all in the two languages that the recipe names
    pairs.jsonl    {"text_a": "…", "lang_a": "en", "text_b": "…", "lang_b": "de", "score": 1.07, "group": "…"}
    pairs.parquet, pairs.arrow, pairs.csv      the same, as columns; other names of columns are options

MarginFile, WikiMatrix and CCMatrix, mined with a margin score of LASER embeddings:

    WikiMatrix.de-en.tsv.gz   score <TAB> sentence in de <TAB> sentence in en, best first, without a header line
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Final

from cclm.errors import DataError
from cclm.languages import language_tag
from cclm.rows.cells import identifier, language, number, optional, text
from cclm.rows.guard import mistaken, refuse, shown
from cclm.rows.lines import plain_stem, plain_suffix
from cclm.rows.tables import TABLE_SUFFIXES, Row, read_rows
from cclm.types import TextPair
from shards.corpora.cells import NO_LANGUAGE, LanguageTag, pair_in
from shards.corpora.entries import each, leave_out
from shards.corpora.files import named_files, part_of_each
from shards.parts import LazyRecord, Part, Skipped

Pairs = Iterator[LazyRecord | Skipped]
"""Records, refusals, and counts of what was skipped."""
Make = Callable[[str, str, Any], Iterable[LazyRecord | Skipped]]
"""(source, place, entry) -> its records."""
_SCORED: Final = ("score", "text_a", "text_b")


def lazy_pair(
    a: tuple[str, str], b: tuple[str, str], source: str, score: float | None = None, group: str = ""
) -> LazyRecord:
    """Return the record of one pair; a blank text raises a refusal (reason text_empty).

    Args:
        a: language and text of the sentence that groups: all its translations are one sample, so that none of them is
            ever taken for another one's negative.
        b: language and text of its translation.
        source: the corpus.
        score: the corpus's own score of the pair.
        group: the group's name; empty: a hash of `a`.
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
