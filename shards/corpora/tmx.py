"""TMX, the exchange format of translation memories, read as a stream.

<tu><tuv xml:lang="en"><seg>A dog.</seg></tuv><tuv xml:lang="de"><seg>Ein Hund.</seg></tuv></tu>
"""

from __future__ import annotations

import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final, cast
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from shards.corpora.files import BROKEN_STREAM, named_files, open_plain, plain_stem
from shards.corpora.languages import same_language
from shards.corpora.pair_record import lazy_pair
from shards.corpora.refusal import broken_tail, refused
from shards.parts import LazyRecord, Part, Skipped, file_stamp

_LANGUAGE: Final = "{http://www.w3.org/XML/1998/namespace}lang"
_CODES: Final = frozenset({"bpt", "ept", "ph", "it", "ut"})
"""Inline elements whose content is the markup of another program, not text."""


@dataclass(frozen=True, kw_only=True)
class Tmx:
    """Translation memories, one part each."""

    path: Path | Sequence[Path]
    """Files (.tmx, .tmx.gz, .zip with one .tmx), folders or patterns."""
    lang_a: str
    """Language of `text_a`; "en" also takes en-US."""
    lang_b: Sequence[str]
    """Languages of `text_b`, each a pair of its own."""
    source: str = ""
    """The corpus's name; empty: the file's name."""

    def parts(self) -> Sequence[Part]:
        """Find the files."""
        files = named_files(self.path, (".tmx", ".zip"))
        return [Part(name=name, read=partial(self.read, path), stamp=file_stamp(path)) for name, path in files.items()]

    def read(self, path: Path) -> Iterator[LazyRecord | Skipped]:
        """Yield one draft per translation of each unit; count the further texts of a unit that gave one."""
        source, number, passed = self.source or plain_stem(path), 0, Counter[str]()
        with ExitStack() as stack:
            try:
                for number, unit in enumerate(_units(_open(path, stack)), 1):
                    yield from self._drafts(unit, source, f"{path.name}:{number}", passed)
            except (ElementTree.ParseError, zipfile.BadZipFile, *BROKEN_STREAM) as error:
                yield broken_tail(path.name, number + 1, source, str(error))
        yield Skipped(source=source, rows=passed)

    def _drafts(self, unit: Element, source: str, where: str, passed: Counter[str]) -> Iterator[LazyRecord]:
        texts = [(tuv.get(_LANGUAGE) or tuv.get("lang") or "", _text_of(tuv.find("seg"))) for tuv in unit.iter("tuv")]
        firsts = [text for language, text in texts if same_language(language, self.lang_a)]
        others = [
            (wanted, text) for wanted in self.lang_b for language, text in texts if same_language(language, wanted)
        ]
        if not firsts or not others:
            yield refused(
                key=where,
                source=source,
                reason="language_missing",
                expected=f"a unit in {self.lang_a} and in {' or '.join(self.lang_b)}",
                got=", ".join(language for language, _ in texts) or "no texts",
                where=where,
                do="Name other languages in the recipe, if these are wanted.",
                unwanted=True,
            )
            return
        # The first text in lang_a stands in every pair; further ones in none.
        passed.update([language for language, _ in texts if same_language(language, self.lang_a)][1:])
        wanted_tags = (self.lang_a, *self.lang_b)
        passed.update(tag for tag, _ in texts if not any(same_language(tag, wanted) for wanted in wanted_tags))
        for number, (language, text) in enumerate(others):
            yield lazy_pair(
                text_a=firsts[0],
                lang_a=self.lang_a,
                text_b=text,
                lang_b=language,
                source=source,
                where=f"{where}.{number}" if number else where,
            )


def _open(path: Path, stack: ExitStack) -> BinaryIO:
    if path.suffix != ".zip":
        return stack.enter_context(open_plain(path))
    archive = stack.enter_context(zipfile.ZipFile(path))
    names = [name for name in archive.namelist() if name.lower().endswith(".tmx")]
    if len(names) != 1:
        raise zipfile.BadZipFile(f"{len(names)} .tmx files in the zip, not one")
    return cast(BinaryIO, stack.enter_context(archive.open(names[0])))


def _units(file: BinaryIO) -> Iterator[Element]:
    """Yield each <tu>, and forget it."""
    body: Element | None = None
    for event, element in ElementTree.iterparse(file, events=("start", "end")):
        if event == "start":
            body = element if element.tag == "body" else body
        elif element.tag == "tu":
            yield element
            if body is not None:
                body.clear()


def _text_of(seg: Element | None) -> str:
    if seg is None:
        return ""
    texts = [seg.text or ""] if seg.tag not in _CODES else []
    for child in seg:
        texts += [_text_of(child), child.tail or ""]
    return "".join(texts)
