"""Entries of annotation files → rows: a reader names the entries and says what one becomes; this does the rest.

    JSON lines, a JSON list or object, a table ─▶ (place, entry) ─ make ─▶ row | Dropped(reason) | DataError

An entry of another form than the format's is an error that names file and line. One that the protocol leaves out is
counted by its reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from cclm.annotations.rows import BLANK_CAPTION, NO_CAPTION, AnnotationFile, CaptionRow, Row
from cclm.errors import DataError
from cclm.languages import language_tag
from cclm.rows.cells import identifier, mapping, text
from cclm.rows.documents import json_document, json_entries
from cclm.rows.guard import bad, data_error, refuse, shown
from cclm.rows.lines import plain_suffix
from cclm.rows.tables import read_rows
from cclm.types import Language

Entry = TypeVar("Entry")
Made = TypeVar("Made")
Key = TypeVar("Key")
Value = TypeVar("Value")
KEY = "\0key"
"""Name of an entry's line, index or key, which no published file uses."""
Problems = list[DataError]
"""What a reader notes its errors in, to go on; None in its place: the first one is raised."""


@dataclass(frozen=True)
class Dropped:
    """An entry that the protocol leaves out, for a reason that is counted."""

    reason: str


def entries_of(path: Path) -> Iterator[tuple[str, Mapping[str, Any] | DataError]]:
    """Yield ("PATH:LINE", object) of JSON lines (.jsonl), or of a JSON list or object of objects; also compressed.

    Under `KEY` they have their line, index or key, too: many published lists give no ids, and stand on one line.
    """
    if plain_suffix(path) == ".jsonl":
        for place, row in read_rows(str(path), path, needed=()):
            yield place, row if isinstance(row, DataError) else {KEY: place.rpartition(":")[2], **row}
        return
    for place, key, entry in json_entries(path):
        if isinstance(entry, dict):
            yield place, {KEY: key, **entry}
        else:
            yield place, bad("line_broken", "an object", f"a JSON {type(entry).__name__}")


def read_entries(
    path: Path,
    language: str | None,
    entries: Iterable[tuple[str, Entry | DataError]],
    make: Callable[[Language, Entry], Row | Dropped],
    problems: Problems | None = None,
) -> AnnotationFile[Row]:
    """Return the rows that `make(tag, entry)` makes; no language stands for a file of several, whose tag is "".

    Raises:
        DataError: no such language; the first entry that is not as the format says, with file and line (unless
            `problems` are given); one that ends the file (reason file_broken) too.
    """
    tag = "" if language is None else _known_language(path, language)
    made = list(_made(path, entries, partial(make, tag), problems))
    dropped = Counter(item.reason for item in made if isinstance(item, Dropped))
    rows = tuple(item for item in made if item is not None and not isinstance(item, Dropped))
    return AnnotationFile(path=path, language=tag, rows=rows, num_entries=len(made), dropped=dropped)


@dataclass(frozen=True, kw_only=True)
class Captioned:
    """What an entry says of an image."""

    id: str
    """What the image shows."""
    image: str
    captions: Sequence[str]


def read_captions(
    path: Path,
    language: str,
    entries: Iterable[tuple[str, Entry | DataError]],
    make: Callable[[Language, Entry], Captioned | Dropped],
    problems: Problems | None = None,
) -> AnnotationFile[CaptionRow]:
    """Return one row an image, with the captions of all its entries, in the order of their first ones.

    Blank captions are dropped, and images that have no other. Raises DataError as `read_entries` does.
    """
    tag, num_entries, dropped = _known_language(path, language), 0, Counter[str]()
    found: dict[str, tuple[str, list[str]]] = {}
    for item in _made(path, entries, partial(make, tag), problems):  # one after another: there may be millions
        num_entries += 1
        if isinstance(item, Dropped):
            dropped[item.reason] += 1
        elif item is not None:
            kept = [caption for caption in item.captions if caption.strip()]
            dropped[BLANK_CAPTION] += len(item.captions) - len(kept)
            found.setdefault(item.id, (item.image, []))[1].extend(kept)
    rows = [
        CaptionRow(id=identity, image=image, captions=tuple(captions), language=tag)
        for identity, (image, captions) in found.items()
        if captions
    ]
    dropped[NO_CAPTION] += len(found) - len(rows)
    counts = {reason: count for reason, count in dropped.items() if count}
    return AnnotationFile(path=path, language=tag, rows=tuple(rows), num_entries=num_entries, dropped=counts)


def _known_language(path: Path, name: str) -> Language:
    """Return the tag of a language (DataError: it is none, reason language_unknown)."""
    tag = language_tag(name)
    if tag is None:
        refuse("language_unknown", "a language, such as en, pt-BR or zh-Hant", repr(name), str(path))
    return tag


def _made(
    path: Path,
    entries: Iterable[tuple[str, Entry | DataError]],
    make: Callable[[Entry], Made],
    problems: Problems | None,
) -> Iterator[Made | None]:
    """Yield what is made of each entry; None of a broken one, which is raised, or noted among the problems."""
    for place, entry in _to_the_end(path, entries):
        made: Made | None = None
        try:
            if isinstance(entry, DataError):
                raise entry
            made = make(entry)
        except Exception as error:  # the net: `data_error` raises again what is not the data's fault
            problem = data_error(error, place)
            if problems is None:
                raise problem from error
            problems.append(problem)
        yield made


def _to_the_end(
    path: Path, entries: Iterable[tuple[str, Entry | DataError]]
) -> Iterator[tuple[str, Entry | DataError]]:
    """Yield the entries, and what breaks the file off as the last one."""
    try:
        yield from entries
    except DataError as error:
        yield error.where or str(path), error


def object_in(path: Path, problems: Problems | None) -> Mapping[str, Any]:
    """Return the object that a JSON document is; an empty one where it is broken and problems are collected."""
    try:
        return mapping(json_document(path), "a JSON object")
    except DataError as error:
        problem = data_error(error, str(path))
        if problems is None:
            raise problem from error
        problems.append(problem)
        return {}


def items_at(path: Path, document: Mapping[str, Any], key: str) -> Iterator[tuple[str, Mapping[str, Any] | DataError]]:
    """Yield ("PATH:KEY[INDEX]", object) of a list of objects in a document."""
    items = document.get(key)
    if not isinstance(items, list):
        yield str(path), bad("file_broken", f"a list in {key!r}", shown(items))
        return
    for number, item in enumerate(items):
        is_object = isinstance(item, Mapping)
        yield f"{path}:{key}[{number}]", item if is_object else bad("line_broken", "an object", shown(item))


def indexed(
    path: Path,
    document: Mapping[str, Any],
    key: str,
    make: Callable[[Mapping[str, Any]], tuple[Key, Value]],
    problems: Problems | None,
) -> dict[Key, Value]:
    """Return the pairs that `make` makes of a list of objects in a document."""
    made = _made(path, items_at(path, document, key), make, problems)
    return dict(pair for pair in made if pair is not None)


def text_at(entry: Mapping[str, Any], key: str) -> str:
    """Return a text that must be there; it may be blank."""
    return text(entry.get(key), f"a text in {key!r}")


def name_at(entry: Mapping[str, Any], key: str) -> str:
    """Return an identifier or a name that must be there, as text."""
    value = entry.get(key)
    if type(value) is str and value and value.isascii() and "\0" not in value:
        return value  # most of them: a million questions need not pass all that follows
    return identifier(value, f"a name in {key!r}") or refuse("line_broken", f"a name in {key!r}", "none")
