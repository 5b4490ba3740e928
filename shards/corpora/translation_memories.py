"""Files by which translators and programs hand on texts: TMX, gettext catalogues, and GNOME's documentation.

TMX, the exchange format of translation memories, is read as a stream:

<tu><tuv xml:lang="en"><seg>A dog.</seg></tuv><tuv xml:lang="de"><seg>Ein Hund.</seg></tuv></tu>

gettext catalogues (.po, .mo) hold the translated messages of programs, read by polib, one catalogue at a time:

locale/de/LC_MESSAGES/django.po    msgid "Delete the dog?"    msgstr "Den Hund löschen?"

GNOME's user documentation has pages of some paragraphs, translated into 40 languages at the same places; what was not
translated stands there in English, and is skipped:

gnome-user-docs_….deb ─ data.tar.xz ─ usr/share/help/LANGUAGE/gnome-help/PAGE.page
                                        <title>, <p> outside of <info>: the n-th is a translation of the n-th in English
"""

from __future__ import annotations

import html
import io
import lzma
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final
from xml.etree import ElementTree
from xml.parsers import expat

from cclm.languages import language_tag, same_language
from cclm.rows.cells import language, text
from cclm.rows.guard import data_errors, guarded, mistaken, optional_library, refuse, shown
from cclm.rows.lines import LINE_BYTES, members_of, open_plain
from shards.corpora.files import ENGLISH, NO_LANGUAGE, LanguageTag, is_hidden
from shards.corpora.packages import GNOME_DOCS
from shards.corpora.pair_file import PairFiles, Pairs, lazy_pair
from shards.parts import LazyRecord, Part, Skipped, each, leave_out

_CODES: Final = frozenset({"bpt", "ept", "ph", "it", "ut"})
"""Inline elements whose content is the markup of another program, not text."""
_PIECE_BYTES: Final = 1 << 16
_ENTITY_CHARACTERS: Final = 100
"""Of an entity that a file declares; longer ones, and ones made of others, are how XML bombs are built."""

Unit = list[tuple[str, str]]
"""The (language, text) of each <tuv> of a <tu>."""


@dataclass(frozen=True, kw_only=True)
class Tmx(PairFiles):
    """Translation memories, one part each."""

    suffixes = (".tmx", ".zip")
    source: str = ""
    lang_a: LanguageTag
    """Language of `text_a`; "en" also takes en-US."""
    lang_b: Sequence[LanguageTag]
    """Languages of `text_b`, each a pair of its own."""

    def read(self, name: str, path: Path) -> Pairs:
        """Yield one record per translation of each unit; count the further texts of a unit that gave one."""
        return self.records(path, guarded(name, enumerate(_units(path), 1)), self._pairs)

    def _pairs(self, source: str, place: str, unit: Unit) -> Pairs:
        tagged = [(language_tag(language) or language or "no language", text) for language, text in unit]
        firsts = [text for tag, text in tagged if same_language(tag, self.lang_a)]
        others = [(wanted, text) for wanted in self.lang_b for tag, text in tagged if same_language(tag, wanted)]
        if not firsts or not others:
            expected = f"a unit in {self.lang_a} and in {' or '.join(self.lang_b)}"
            got, do = ", ".join(tag for tag, _ in tagged) or "no texts", "Name other languages, if these are wanted."
            leave_out("language_missing", expected, got, do)
        # The first text in lang_a stands in every pair; further ones in none.
        skipped = Counter([tag for tag, _ in tagged if same_language(tag, self.lang_a)][1:])
        wanted_tags = (self.lang_a, *self.lang_b)
        skipped.update(tag for tag, _ in tagged if not any(same_language(tag, wanted) for wanted in wanted_tags))
        yield Skipped(source=source, rows=skipped)
        places = (f"{place}.{number}" if number else place for number in range(len(others)))
        first = (self.lang_a, firsts[0])
        yield from each(zip(places, others, strict=True), lambda _, other: [lazy_pair(first, other, source)], source)


def _units(path: Path) -> Iterator[Unit]:
    names = [name for name in members_of(path) if not name or (name.lower().endswith(".tmx") and not is_hidden(name))]
    if not names:
        refuse("file_broken", "a .tmx file in the zip", "none")
    for name in names:
        reader = _Reader()
        with open_plain(path, name) as file:
            while piece := file.read(_PIECE_BYTES):
                yield from reader.units_in(piece)
        yield from reader.units_in(b"", is_last=True)


class _Reader:
    """Gives the units of a stream of XML. Names count without their namespace, entities as HTML has them."""

    def __init__(self) -> None:
        self._units: list[Unit] = []
        self._unit: Unit = []
        self._language, self._size = "", 0
        self._text: list[str] | None = None
        self._inside: list[str] = []
        """The elements around the text, from <seg>; empty outside of one."""
        self._parser = expat.ParserCreate(namespace_separator=" ")
        self._parser.buffer_text = True
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._characters
        self._parser.EntityDeclHandler = self._declared
        self._parser.SkippedEntityHandler = self._entity

    def units_in(self, piece: bytes, *, is_last: bool = False) -> list[Unit]:
        """Return the units that end in a piece of the file."""
        self._parser.Parse(piece, is_last)
        found, self._units = self._units, []
        return found

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        tag = name.rpartition(" ")[2]
        if self._inside:
            self._inside.append(tag)
        elif tag == "tu":
            self._unit, self._size = [], 0
        elif tag == "tuv":
            named = {key.rpartition(" ")[2]: value for key, value in attributes.items()}
            self._language, self._text = named.get("lang", ""), None
        elif tag == "seg" and self._text is None:
            self._text, self._inside = [], [tag]

    def _end(self, name: str) -> None:
        tag = name.rpartition(" ")[2]
        if self._inside:
            self._inside.pop()
        elif tag == "tuv":
            self._unit.append((self._language, "".join(self._text or ())))
        elif tag == "tu":
            self._units.append(self._unit)

    def _characters(self, text: str) -> None:
        if self._inside and self._inside[-1] not in _CODES and self._text is not None:
            self._size += len(text)
            if self._size > LINE_BYTES:
                refuse("file_broken", f"units of at most {LINE_BYTES >> 20} million characters", "a larger one")
            self._text.append(text)

    def _entity(self, name: str, is_parameter: bool) -> None:
        if not is_parameter:
            known = html.unescape(f"&{name};")
            if known == f"&{name};":
                refuse("file_broken", "entities that are declared, or HTML's", f"&{name};")
            self._characters(known)

    def _declared(self, name: str, is_parameter: bool, value: str | None, *_: Any) -> None:
        if value is not None and (len(value) > _ENTITY_CHARACTERS or "&" in value or is_parameter):
            refuse("file_broken", "entities of a few characters", f"a declaration of {name}")


@dataclass(frozen=True, kw_only=True)
class Gettext(PairFiles):
    """Catalogues, one part each."""

    suffixes = (".po", ".mo")
    source: str = ""
    lang_a: LanguageTag = ENGLISH
    """Language of the messages in the program's code (`msgid`)."""
    lang_b: LanguageTag = NO_LANGUAGE
    """Language of the translations; empty: that of the folder above LC_MESSAGES, or the catalogue's own header."""

    def read(self, name: str, path: Path) -> Pairs:
        """Yield one record a message (two for one with a plural); what is fuzzy or not translated is refused."""
        return self.records(path, guarded(name, self._messages(path)), self._pair)

    def _messages(self, path: Path) -> Iterator[tuple[Any, tuple[str, str, str, bool]]]:
        """Yield (number, (message, translation, language, whether it is fuzzy))."""
        catalogue = _open(path)
        folder = path.parent.parent.name if path.parent.name == "LC_MESSAGES" else ""
        named = self.lang_b or folder or catalogue.metadata.get("Language", "")
        if not named:
            got = "no folder LANGUAGE/LC_MESSAGES and no header `Language:`"
            refuse("language_unknown", "a catalogue whose language is known", got, do="Name lang_b in `options`.")
        for number, entry in enumerate(catalogue, 1):
            if entry.msgid and not entry.obsolete:  # obsolete: commented out, no longer a message of the program
                for form, (message, translation) in enumerate(_forms(entry)):
                    fuzzy = "fuzzy" in getattr(entry, "flags", ())
                    yield f"{number}.{form}" if form else number, (message, translation, language(named), fuzzy)

    def _pair(self, source: str, _: str, message: tuple[str, str, str, bool]) -> Iterator[LazyRecord]:
        text_a, text_b, lang_b, fuzzy = message
        if fuzzy:
            leave_out("fuzzy", f"a translation of {shown(text_a)}", "one that nobody has checked")
        if not text_b.strip():
            leave_out("untranslated", f"a translation of {shown(text_a)}", "none")
        yield lazy_pair((self.lang_a, text(text_a)), (lang_b, text(text_b)), source)


def _forms(entry: Any) -> Sequence[tuple[str, str]]:
    if not entry.msgid_plural:
        return [(entry.msgid, entry.msgstr)]
    forms = [entry.msgstr_plural[key] for key in sorted(entry.msgstr_plural)] or [""]
    return [(entry.msgid, forms[0]), (entry.msgid_plural, forms[-1])]


def _open(path: Path) -> Any:
    polib = optional_library("polib", "it reads gettext catalogues")
    if path.suffix.lower() == ".mo":
        return polib.mofile(path.read_bytes())  # of a file, a damaged length would ask for 4 GiB of memory
    with path.open("rb") as file:
        has_mark = file.read(3) == b"\xef\xbb\xbf"
    return polib.pofile(str(path), encoding="utf-8-sig") if has_mark else polib.pofile(str(path))


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
            for wanted, name in ((wanted, name) for wanted, names in found.items() for name in names):
                translated = _paragraphs(pages[name][page], page) if page in pages[name] else []
                if len(translated) != len(english):  # another version of the page
                    skipped[wanted] += len(english)
                    continue
                for a, b in zip(english, translated, strict=True):
                    if not a or not b or a == b:
                        skipped[wanted] += 1
                    else:
                        yield lazy_pair(("en", a), (wanted, b), SOURCE)
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
