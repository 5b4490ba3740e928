"""A table of sentence pairs: how to bring your own parallel text.

    pairs.tsv      text_a <TAB> text_b [<TAB> score], all in the two languages that the recipe names
    pairs.jsonl    {"text_a": "…", "lang_a": "en", "text_b": "…", "lang_b": "de", "score": 1.07, "group": "…"}
    pairs.parquet, pairs.arrow, pairs.csv      the same, as columns; other names of columns are options

Lines with the same group (by default: the same text_a in the same language) become one group when the set is built.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from shards.corpora.cells import identifier, language, number, optional, text
from shards.corpora.files import named_files, part_of_each, plain_stem, plain_suffix
from shards.corpora.languages import NO_LANGUAGE, LanguageTag
from shards.corpora.pair_record import lazy_pair
from shards.corpora.refusal import each
from shards.corpora.rows import TABLE_SUFFIXES, Row, read_rows
from shards.guard import mistaken
from shards.parts import LazyRecord, Part


@dataclass(frozen=True, kw_only=True)
class PairFile:
    """Files of pairs (.tsv, .csv, .jsonl, also compressed, .parquet, .arrow), one part each."""

    path: Path | Sequence[Path]
    """Files, folders or patterns, in UTF-8."""
    lang_a: LanguageTag = NO_LANGUAGE
    """Language of `text_a`; a row may name its own, unless the file is a TSV without a header line."""
    lang_b: LanguageTag = NO_LANGUAGE
    """Language of `text_b`; a row may name its own."""
    source: str = ""
    """The corpus's name; a row may name its own; empty: the file's name."""
    header: bool = False
    """A TSV file's first line names its columns (in CSV it always does)."""
    text_a: str = "text_a"
    """Column of the sentence."""
    text_b: str = "text_b"
    """Column of its translation."""
    optional: Sequence[str] = ()
    """Which of the columns lang_a, lang_b, score, group, source a CSV, a TSV with a header, or a Parquet file has."""

    def parts(self) -> Sequence[Part]:
        """Find the files; the languages of a table without a header line must be known."""
        files = named_files(self.path, TABLE_SUFFIXES)
        for path in files.values():
            self._check_languages(path)
        return part_of_each(files, self.read)

    def _check_languages(self, path: Path) -> None:
        named = self.optional if plain_suffix(path) != ".tsv" or self.header else ()
        missing = [name for name in ("lang_a", "lang_b") if not getattr(self, name) and name not in named]
        if missing and plain_suffix(path) != ".jsonl":
            expected, got = (
                "lang_a and lang_b for a table whose rows do not name them",
                f"no {' and no '.join(missing)}",
            )
            mistaken(expected, got, "Add both to `options`, or name the columns in `optional`.", path)

    def read(self, name: str, path: Path) -> Iterator[LazyRecord]:
        """Yield one record a row."""
        columns: Sequence[str] = ()
        needed = [self.text_a, self.text_b, *self.optional]
        if plain_suffix(path) == ".tsv" and not self.header:
            columns, needed = (self.text_a, self.text_b, "score"), [self.text_a, self.text_b]
        source = self.source or plain_stem(path)
        return each(read_rows(name, path, needed=needed, columns=columns), partial(self._pair, source), source)

    def _pair(self, source: str, _: str, row: Row) -> Iterator[LazyRecord]:
        score = row.get("score")
        yield lazy_pair(
            text_a=text(row.get(self.text_a), self.text_a),
            lang_a=language(row.get("lang_a") or self.lang_a),
            text_b=text(row.get(self.text_b), self.text_b),
            lang_b=language(row.get("lang_b") or self.lang_b),
            source=optional(row.get("source"), "source") or source,
            score=None if score in (None, "") else number(score, "a score"),
            group=identifier(row.get("group"), "group"),
        )
