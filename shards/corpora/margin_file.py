"""WikiMatrix and CCMatrix: mined sentence pairs with a margin score.

WikiMatrix.de-en.tsv.gz   score <TAB> sentence in de <TAB> sentence in en, best first, without a header line

The score is the margin of LASER embeddings. Their authors take pairs above 1.04 (WikiMatrix) or 1.06 (CCMatrix).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from cclm.languages import language_tag
from shards.corpora.cells import number, text
from shards.corpora.files import named_files, part_of_each, plain_stem
from shards.corpora.languages import NO_LANGUAGE, LanguageTag, pair_in
from shards.corpora.pair_record import lazy_pair
from shards.corpora.refusal import each, leave_out
from shards.corpora.rows import Row, read_rows
from shards.guard import mistaken
from shards.parts import LazyRecord, Part

_NEEDED: Final = ("score", "text_a", "text_b")


@dataclass(frozen=True, kw_only=True)
class MarginFile:
    """Files of scored pairs, one part each."""

    path: Path | Sequence[Path]
    """Files (.tsv, .tsv.gz), folders or patterns."""
    threshold: float = 1.04
    """Pairs with a lower score are refused (reason score_low)."""
    anchor: LanguageTag = NO_LANGUAGE
    """Language that becomes `text_a`, whose translations meet in one group; empty: the file's first one."""
    lang_a: LanguageTag = NO_LANGUAGE
    """Language of the first sentence; empty: as the file's name says (`NAME.de-en.tsv.gz`)."""
    lang_b: LanguageTag = NO_LANGUAGE
    """Language of the second sentence; empty: as the file's name says."""
    columns: Sequence[str] = _NEEDED
    """The file's columns: score, text_a, text_b, and any further ones."""
    source: str = ""
    """The corpus's name; empty: the file's name."""

    def parts(self) -> Sequence[Part]:
        """Find the files and their languages."""
        files = named_files(self.path, (".tsv",))
        for path in files.values():
            self._languages(path)
        return part_of_each(files, self.read)

    def _languages(self, path: Path) -> tuple[str, str]:
        pair = (self.lang_a, self.lang_b) if self.lang_a and self.lang_b else pair_in(path.name)
        tags = [language_tag(name) or "" for name in pair or ()]
        if len(tags) != 2 or (self.anchor and self.anchor not in tags):
            expected = f"two languages{f', one of them {self.anchor}' if self.anchor else ''}"
            got = " and ".join(tags) or "no pair such as de-en in the file's name"
            mistaken(expected, got, "Name lang_a and lang_b in `options`, or correct `anchor`.", path)
        return tags[0], tags[1]

    def read(self, name: str, path: Path) -> Iterator[LazyRecord]:
        """Yield one record a line."""
        source = self.source or plain_stem(path)
        rows = read_rows(name, path, needed=_NEEDED, columns=self.columns)
        return each(rows, partial(self._pair, self._languages(path), source), source)

    def _pair(self, languages: tuple[str, str], source: str, _: str, row: Row) -> Iterator[LazyRecord]:
        score = number(row["score"], "a score")
        if score < self.threshold:
            expected, do = (
                f"a margin of at least {self.threshold:g}",
                "Lower `threshold` if such pairs are good enough.",
            )
            leave_out("score_low", expected, f"{score:g}", do=do)
        sides = [(text(row["text_a"]), languages[0]), (text(row["text_b"]), languages[1])]
        (text_a, lang_a), (text_b, lang_b) = reversed(sides) if self.anchor == languages[1] else sides
        yield lazy_pair(text_a=text_a, lang_a=lang_a, text_b=text_b, lang_b=lang_b, source=source, score=score)
