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

from cclm.errors import ConfigError
from shards.corpora.files import named_files, plain_stem
from shards.corpora.languages import pair_in, tag_of
from shards.corpora.pair_record import lazy_pair
from shards.corpora.refusal import broken_row, first, refused
from shards.corpora.rows import BadRow, read_rows
from shards.parts import LazyRecord, Part, file_stamp

_NEEDED: Final = ("score", "text_a", "text_b")


@dataclass(frozen=True, kw_only=True)
class MarginFile:
    """Files of scored pairs, one part each."""

    path: Path | Sequence[Path]
    """Files (.tsv, .tsv.gz), folders or patterns."""
    threshold: float = 1.04
    """Pairs with a lower score are refused (reason score_low)."""
    anchor: str = ""
    """Language that becomes `text_a`, whose translations meet in one group; empty: the file's first one."""
    lang_a: str = ""
    """Language of the first sentence; empty: as the file's name says (`NAME.de-en.tsv.gz`)."""
    lang_b: str = ""
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
        return [Part(name=name, read=partial(self.read, path), stamp=file_stamp(path)) for name, path in files.items()]

    def _languages(self, path: Path) -> tuple[str, str]:
        pair = (self.lang_a, self.lang_b) if self.lang_a and self.lang_b else pair_in(path.name)
        tags = tuple(map(tag_of, pair or ()))
        if len(tags) != 2 or (self.anchor and self.anchor not in tags):
            raise ConfigError(
                expected=f"two languages{f', one of them {self.anchor}' if self.anchor else ''}",
                got=" and ".join(tags) or "no pair such as de-en in the file's name",
                do="Name lang_a and lang_b in `options`, or correct `anchor`.",
                where=str(path),
            )
        return tags[0], tags[1]

    def read(self, path: Path) -> Iterator[LazyRecord]:
        """Yield one draft a line."""
        languages, source = self._languages(path), self.source or plain_stem(path)
        for number, row in read_rows(path, needed=_NEEDED, columns=self.columns):
            where = f"{path.name}:{number}"
            if isinstance(row, BadRow):
                yield row.draft(path.name, number, source)
                continue
            try:
                score = float(row["score"])
            except ValueError as error:
                yield broken_row(
                    path.name, number, source, f"{error} in {first(row)}", "a score, a number, and two texts"
                )
                continue
            if not score >= self.threshold:  # also refuses "nan"
                yield refused(
                    key=where,
                    source=source,
                    reason="score_low",
                    expected=f"a margin of at least {self.threshold:g}",
                    got=f"{score:g}",
                    where=where,
                    do="Lower `threshold` in the recipe if such pairs are good enough.",
                    unwanted=True,
                )
                continue
            sides = [(row["text_a"], languages[0]), (row["text_b"], languages[1])]
            if self.anchor == languages[1]:
                sides.reverse()
            (text_a, lang_a), (text_b, lang_b) = sides
            yield lazy_pair(
                text_a=text_a, lang_a=lang_a, text_b=text_b, lang_b=lang_b, source=source, where=where, score=score
            )
