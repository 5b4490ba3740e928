"""Tatoeba: sentences in hundreds of languages, and links that say which ones are translations.

sentences.csv   id <TAB> language (ISO 639-3) <TAB> text
links.csv       id <TAB> id of a translation

Joined twice by id, on disk where they are many (`shards/corpora/entries.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from shards.corpora.cells import LanguageTag, text
from shards.corpora.entries import Keyed, each, joined
from shards.corpora.files import named_files, one_part
from shards.corpora.pair_file import lazy_pair
from shards.corpora.rows import Row, read_rows
from shards.guard import mistaken
from shards.parts import LazyRecord, Part, Skipped

_SUFFIXES: Final = (".csv", ".tsv")


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
        files = [*named_files(self.sentences, _SUFFIXES).values(), *named_files(self.links, _SUFFIXES).values()]
        return one_part("pairs", self.read, files)

    def read(self) -> Iterator[LazyRecord | Skipped]:
        """Yield one record per sentence in the anchor's language and translation of it."""
        anchored = joined(self._sentences_and_links(), self._anchored, self.source)
        return joined(anchored, self._pairs, self.source)

    def _pairs(self, identity: str, found: Sequence[Any]) -> Iterator[LazyRecord]:
        anchors = dict.fromkeys(item for item in found if item[0] == "anchor")
        others = [item for item in found if item[0] == "sentence"]
        pairs = ((f"{id_a}-{identity}", (text_a, *other)) for _, text_a, id_a in anchors for _, *other in others)
        return each(pairs, self._pair, self.source)

    def _pair(self, _: str, texts: tuple[str, str, str]) -> Iterator[LazyRecord]:
        text_a, lang_b, text_b = texts
        yield lazy_pair((self.anchor, text_a), (lang_b, text_b), self.source)

    def _anchored(self, identity: str, found: Sequence[Any]) -> Iterator[tuple[str, Any]]:
        """Yield the other languages' sentences by their id, and the anchor's sentences by the ids of translations."""
        links = [item[1] for item in found if item[0] == "link"]
        for _, tag, sentence in (item for item in found if item[0] == "sentence"):
            if tag == self.anchor:
                yield from ((other, ("anchor", sentence, identity)) for other in links)
            else:
                yield identity, ("sentence", tag, sentence)

    def _sentences_and_links(self) -> Keyed:
        yield from self._rows(self.sentences, ("id", "language", "text"), self._sentence)
        yield from self._rows(self.links, ("id", "other"), _link)

    def _rows(self, paths: Path | Sequence[Path], columns: Sequence[str], make: Callable[[str, Row], Keyed]) -> Keyed:
        """Yield what `make(place, row)` yields; files are ".csv" by name, but cells stand between tabs, not quoted."""
        for name, path in named_files(paths, _SUFFIXES).items():
            rows = read_rows(name, path, needed=columns, columns=columns, delimiter="\t", quoted=False)
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
