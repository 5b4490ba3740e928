"""gettext catalogues (.po, .mo): the translated messages of programs. Read by polib, one catalogue at a time.

locale/de/LC_MESSAGES/django.po    msgid "Delete the dog?"    msgstr "Den Hund löschen?"
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.corpora.cells import ENGLISH, NO_LANGUAGE, LanguageTag, language, text
from shards.corpora.entries import guarded, leave_out, refuse
from shards.corpora.pair_file import PairFiles, lazy_pair
from shards.guard import optional_library, shown
from shards.parts import LazyRecord, Skipped


@dataclass(frozen=True, kw_only=True)
class Gettext(PairFiles):
    """Catalogues, one part each."""

    suffixes = (".po", ".mo")
    source: str = ""
    lang_a: LanguageTag = ENGLISH
    """Language of the messages in the program's code (`msgid`)."""
    lang_b: LanguageTag = NO_LANGUAGE
    """Language of the translations; empty: that of the folder above LC_MESSAGES, or the catalogue's own header."""

    def read(self, name: str, path: Path) -> Iterator[LazyRecord | Skipped]:
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
        return polib.mofile(str(path))
    with path.open("rb") as file:
        has_mark = file.read(3) == b"\xef\xbb\xbf"
    return polib.pofile(str(path), encoding="utf-8-sig") if has_mark else polib.pofile(str(path))
