"""gettext catalogues (.po, .mo): the translated messages of programs. Read by polib, one catalogue at a time.

locale/de/LC_MESSAGES/django.po    msgid "Delete the dog?"    msgstr "Den Hund löschen?"
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cclm.errors import ConfigError, MissingDependencyError
from shards.corpora.files import named_files
from shards.corpora.languages import tag_of
from shards.corpora.pair_record import lazy_pair
from shards.corpora.refusal import broken_tail, first, refused
from shards.parts import LazyRecord, Part, file_stamp

if TYPE_CHECKING:
    from polib import MOFile, POEntry, POFile


@dataclass(frozen=True, kw_only=True)
class Gettext:
    """Catalogues, one part each."""

    path: Path | Sequence[Path]
    """Files (.po, .mo), folders or patterns."""
    lang_a: str = "en"
    """Language of the messages in the program's code (`msgid`)."""
    lang_b: str = ""
    """Language of the translations; empty: that of the folder above LC_MESSAGES, or the catalogue's own header."""
    source: str = ""
    """The corpus's name; empty: the file's name."""

    def parts(self) -> Sequence[Part]:
        """Find the files."""
        files = named_files(self.path, (".po", ".mo"))
        read = [partial(self.read, name, path) for name, path in files.items()]
        return [
            Part(name=name, read=one, stamp=file_stamp(path))
            for (name, path), one in zip(files.items(), read, strict=True)
        ]

    def read(self, name: str, path: Path) -> Iterator[LazyRecord]:
        """Yield one draft a message (two for one with a plural); what is fuzzy or not translated is refused."""
        source = self.source or path.stem
        try:
            catalogue = _open(path)
        except (OSError, ValueError, IndexError, struct.error) as error:
            yield broken_tail(name, 1, source, str(error))
            return
        language = self._language(path, catalogue)
        for number, entry in enumerate(catalogue, 1):
            if entry.msgid and not entry.obsolete:  # obsolete: commented out, no longer a message of the program
                yield from self._drafts(entry, language, source, f"{name}:{number}")

    def _language(self, path: Path, catalogue: POFile | MOFile) -> str:
        folder = path.parent.parent.name if path.parent.name == "LC_MESSAGES" else ""
        language = self.lang_b or folder or catalogue.metadata.get("Language", "")
        if not language:
            raise ConfigError(
                expected="a catalogue whose language is known",
                got="no folder LANGUAGE/LC_MESSAGES and no header `Language:`",
                do="Name lang_b in `options`.",
                where=str(path),
            )
        return tag_of(language)

    def _drafts(self, entry: POEntry, language: str, source: str, where: str) -> Iterator[LazyRecord]:
        pairs = [(entry.msgid, entry.msgstr)]
        if entry.msgid_plural:
            forms = [entry.msgstr_plural[key] for key in sorted(entry.msgstr_plural)] or [""]
            pairs = [(entry.msgid, forms[0]), (entry.msgid_plural, forms[-1])]
        for number, (message, translation) in enumerate(pairs):
            place = f"{where}.{number}" if number else where
            reason = (
                "fuzzy" if "fuzzy" in getattr(entry, "flags", ()) else "untranslated" if not translation.strip() else ""
            )
            if reason:
                yield refused(
                    key=place,
                    source=source,
                    reason=reason,
                    expected=f"a translation of {first(message)}",
                    got="one that nobody has checked" if reason == "fuzzy" else "none",
                    where=place,
                    unwanted=True,
                )
            else:
                yield lazy_pair(
                    text_a=message, lang_a=self.lang_a, text_b=translation, lang_b=language, source=source, where=place
                )


def _open(path: Path) -> POFile | MOFile:
    try:
        import polib
    except ImportError as error:
        raise MissingDependencyError(
            expected="the package polib (it reads gettext catalogues)", got="no such package", do="pip install polib"
        ) from error
    return polib.mofile(str(path)) if path.suffix == ".mo" else polib.pofile(str(path))
