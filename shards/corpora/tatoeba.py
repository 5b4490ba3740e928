"""Tatoeba: sentences in hundreds of languages, and links that say which ones are translations.

sentences.csv   id <TAB> language (ISO 639-3) <TAB> text
links.csv       id <TAB> id of a translation

Joined twice by id, on disk where they are many (`shards/corpora/spill.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cclm.errors import ConfigError
from shards.corpora.files import named_files
from shards.corpora.pair_record import lazy_pair
from shards.corpora.rows import BadRow, read_rows
from shards.corpora.spill import grouped
from shards.parts import LazyRecord, Part, Skipped, file_stamp

_SUFFIXES: Final = (".csv", ".tsv")


@dataclass(frozen=True, kw_only=True)
class Tatoeba:
    """The translations of one language's sentences: one part."""

    sentences: Path | Sequence[Path]
    """sentences.csv, or the exports of single languages; also .bz2."""
    links: Path | Sequence[Path]
    """links.csv, or the exports of single pairs; a link holds in both directions."""
    languages: Mapping[str, str]
    """The site's code -> BCP-47 tag, for example {eng: en, deu: de}: sentences in others are passed over, and
    counted."""
    anchor: str
    """Language of `text_a`, a tag."""
    source: str = "tatoeba"
    """The corpus's name."""

    def parts(self) -> Sequence[Part]:
        """Find the files."""
        if self.anchor not in self.languages.values():
            raise ConfigError(
                expected="an anchor among the languages",
                got=f"{self.anchor!r}, not one of {', '.join(self.languages.values())}",
                do="Correct `anchor` or `languages`.",
            )
        files = [*named_files(self.sentences, _SUFFIXES).values(), *named_files(self.links, _SUFFIXES).values()]
        return [Part(name="pairs", read=self.read, stamp="-".join(map(file_stamp, files)))]

    def read(self) -> Iterator[LazyRecord | Skipped]:
        """Yield one draft per sentence in the anchor's language and translation of it."""
        passed: Counter[str] = Counter()
        yield from self._drafts(passed)
        yield Skipped(source=self.source, rows=passed)

    def _drafts(self, passed: Counter[str]) -> Iterator[LazyRecord]:
        for identity, found in grouped(self._anchored(passed)):
            if isinstance(found[0], LazyRecord):
                yield from found
                continue
            others = [item for item in found if item[0] == "sentence"]
            for _, text_a, id_a in dict.fromkeys(item for item in found if item[0] == "anchor"):
                for _, language, text_b in others:
                    yield lazy_pair(
                        text_a=text_a,
                        lang_a=self.anchor,
                        text_b=text_b,
                        lang_b=language,
                        source=self.source,
                        where=f"{id_a}-{identity}",
                    )

    def _anchored(self, passed: Counter[str]) -> Iterator[tuple[str, Any]]:
        """Yield the other languages' sentences by their id, and the anchor's sentences by the ids of translations."""
        for identity, found in grouped(self._sentences_and_links(passed)):
            if isinstance(found[0], LazyRecord):
                yield identity, found[0]
                continue
            links = [item for item in found if item[0] == "link"]
            for _, language, text in (item for item in found if item[0] == "sentence"):
                if language == self.anchor:
                    yield from ((other, ("anchor", text, identity)) for _, other in links)
                else:
                    yield identity, ("sentence", language, text)

    def _sentences_and_links(self, passed: Counter[str]) -> Iterator[tuple[str, Any]]:
        for name, number, row in _rows(self.sentences, ("id", "language", "text")):
            if isinstance(row, BadRow):
                yield f"\0{name}:{number}", row.draft(name, number, self.source)
            elif row["language"] in self.languages:
                yield row["id"], ("sentence", self.languages[row["language"]], row["text"])
            else:
                passed[row["language"]] += 1
        for name, number, row in _rows(self.links, ("id", "other")):
            if isinstance(row, BadRow):
                yield f"\0{name}:{number}", row.draft(name, number, self.source)
            else:
                yield row["id"], ("link", row["other"])
                yield row["other"], ("link", row["id"])


def _rows(
    paths: Path | Sequence[Path], columns: Sequence[str]
) -> Iterable[tuple[str, int, Mapping[str, str] | BadRow]]:
    for name, path in named_files(paths, _SUFFIXES).items():
        # ".csv" by name, but cells stand between tabs and are not quoted.
        for number, row in read_rows(path, needed=columns, columns=columns, delimiter="\t", quoted=False):
            yield name, number, row
