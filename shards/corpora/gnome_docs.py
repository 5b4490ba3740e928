"""GNOME's user documentation: pages of some paragraphs, translated into 40 languages at the same places.

gnome-user-docs_….deb ─ data.tar.xz ─ usr/share/help/LANGUAGE/gnome-help/PAGE.page
                                        <title>, <p> outside of <info>: the n-th is a translation of the n-th in English

What was not translated stands there in English, and is skipped.
"""

from __future__ import annotations

import io
import lzma
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final
from xml.etree import ElementTree

from cclm.languages import language_tag, same_language
from cclm.rows.guard import data_errors, mistaken, refuse
from shards.corpora.cells import LanguageTag
from shards.corpora.packages import GNOME_DOCS
from shards.corpora.pair_file import Pairs, lazy_pair
from shards.parts import Part, Skipped

SOURCE: Final = "gnome-user-docs"
_PAGE: Final = re.compile(r"\./usr/share/help/([^/]+)/([^/]+/[^/]+)\.page")
_MEMBER: Final = 60
"""Bytes of a header in an `ar` archive, which a .deb is."""
_ENGLISH: Final = "C"
Pages = dict[str, bytes]
"""A page's name → its XML."""


@dataclass(frozen=True, kw_only=True)
class GnomeDocs:
    """One part: English paragraphs, each with its translations."""

    packages: Path
    """The folder that `fetch-demo --also gnome-user-docs` filled."""
    translations: Sequence[LanguageTag]
    """The languages of `text_b`; "zh" also takes zh-CN."""

    def parts(self) -> Sequence[Part]:
        """Return the package as a part."""
        stamp = f"{GNOME_DOCS.version} {' '.join(self.translations)}"
        return [Part(name=SOURCE, read=partial(self.read), stamp=stamp)]

    def read(self) -> Pairs:
        """Yield one record per translation of each paragraph, pages in their order."""
        pages = _read_pages(self.packages / GNOME_DOCS.file_name)
        tags = {name: language_tag(name) or name for name in pages if name != _ENGLISH}
        found = {
            wanted: [name for name, tag in tags.items() if same_language(tag, wanted)] for wanted in self.translations
        }
        if missing := [wanted for wanted, names in found.items() if not names]:
            do = f"Name some of these: {', '.join(sorted(tags.values()))}."
            mistaken("languages that the documentation is translated into", ", ".join(missing), do)
        skipped: Counter[str] = Counter()
        for page, data in sorted(pages[_ENGLISH].items()):
            english = _paragraphs(data, page)
            for language, name in ((language, name) for language, names in found.items() for name in names):
                translated = _paragraphs(pages[name][page], page) if page in pages[name] else []
                if len(translated) != len(english):  # another version of the page
                    skipped[language] += len(english)
                    continue
                for a, b in zip(english, translated, strict=True):
                    if not a or not b or a == b:
                        skipped[language] += 1
                    else:
                        yield lazy_pair(("en", a), (language, b), SOURCE)
        yield Skipped(source=SOURCE, rows=skipped)


def _read_pages(path: Path) -> dict[str, Pages]:
    """Language, as folders are called → its pages (reasons package_missing, package_broken)."""
    pages: dict[str, Pages] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(_data_of(path.read_bytes())), mode="r:xz") as archive:
            for member in archive:
                match = _PAGE.fullmatch(member.name)
                if match and (file := archive.extractfile(member)) is not None:
                    pages.setdefault(match[1], {})[match[2]] = file.read()
    except FileNotFoundError:
        do = "Run `python -m shards fetch-demo --also gnome-user-docs --to` that folder first."
        refuse("package_missing", "a fetched package", "no such file", str(path), do)
    except (tarfile.TarError, lzma.LZMAError, EOFError, OSError, ValueError) as error:
        do = "Remove it and run `python -m shards fetch-demo` again."
        refuse("package_broken", "a fetched package", str(error), str(path), do)
    if _ENGLISH not in pages:
        refuse("package_broken", "pages in English", "none", str(path))
    return pages


def _data_of(archive: bytes) -> bytes:
    """The member data.tar.xz of a .deb (ValueError: there is none)."""
    place = len(b"!<arch>\n")
    while place + _MEMBER <= len(archive):
        header = archive[place : place + _MEMBER]
        name, size = header[:16].decode("ascii").strip(" /"), int(header[48:58])
        place += _MEMBER
        if name == "data.tar.xz":
            return archive[place : place + size]
        place += size + size % 2
    raise ValueError("no data.tar.xz in it")


def _paragraphs(data: bytes, page: str) -> list[str]:
    """Titles and paragraphs of a page in their order, spaces as one."""
    with data_errors(page, "page_broken", "a Mallard page"):
        return [" ".join("".join(element.itertext()).split()) for element in _texts(ElementTree.fromstring(data))]


def _texts(element: ElementTree.Element) -> Iterator[ElementTree.Element]:
    for child in element:
        tag = child.tag.rpartition("}")[2] if isinstance(child.tag, str) else "info"
        if tag in ("p", "title"):
            yield child
        elif tag != "info":
            yield from _texts(child)
