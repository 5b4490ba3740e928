"""Entries of a corpus: each becomes records, or a refusal with its reason and place, which goes to quarantine.

file --guarded--> (place, entry or error) --each--> records and refusals
                                           --joined--> the same, of entries with one key, however far apart they lie
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NoReturn, TypeVar

from cclm.errors import DataError
from shards.corpora.spill import grouped
from shards.guard import MEND, data_error, data_errors
from shards.parts import LazyRecord, Skipped, UnwantedError

Entry = TypeVar("Entry")
Made = TypeVar("Made")


def refuse(reason: str, expected: str, got: str, where: str = "", do: str = MEND) -> NoReturn:
    """Raise the DataError that sends a record to quarantine; `each` knows its place."""
    raise DataError(reason=reason, expected=expected, got=got, do=do, where=where)


def leave_out(reason: str, expected: str, got: str, where: str = "", do: str = MEND) -> NoReturn:
    """Raise what sends a sound record to quarantine, because the recipe does not want it."""
    raise UnwantedError(reason=reason, expected=expected, got=got, do=do, where=where)


def refused(error: DataError, key: str, source: str) -> LazyRecord:
    """Return a record that counts and is refused with this error when it is made."""
    return LazyRecord(key=key, source=source, make=partial(_raise, error))


def _raise(error: DataError) -> NoReturn:
    raise error


def guarded(name: str, numbered: Iterable[tuple[int, Entry]]) -> Iterator[tuple[str, Entry | DataError]]:
    """Yield ("NAME:NUMBER", entry) of a file; whatever reading it raises ends it with one error (reason file_broken).

    How many records are lost with the rest of the file cannot be known.
    """
    number = 0
    try:
        with data_errors(name):
            for number, entry in numbered:
                yield f"{name}:{number}", entry
    except DataError as error:
        if error.reason == "unexpected":
            expected, do = f"a whole file; it was read up to entry {number}", "Fetch the file again."
            error = DataError(reason="file_broken", expected=expected, got=error.got, do=do, where=name)
        yield f"{name}:{number + 1}-end", error


def each(
    entries: Iterable[tuple[str, Entry | DataError]], make: Callable[[str, Entry], Iterable[Made]], source: str
) -> Iterator[Made | LazyRecord]:
    """Yield what `make(place, entry)` yields; an entry that is an error, or of which it raises one, is refused."""
    for place, entry in entries:
        try:
            if isinstance(entry, DataError):
                raise entry
            made = list(make(place, entry))
        except Exception as error:  # noqa: BLE001 (the net: `data_error` raises again what is not the data's fault)
            yield refused(data_error(error, place), place, source)
        else:
            yield from made


def joined(
    items: Iterable[tuple[str, Any] | LazyRecord | Skipped],
    make: Callable[[str, list[Any]], Iterable[Made]],
    source: str,
) -> Iterator[Made | LazyRecord | Skipped]:
    """Yield what `make(key, items of this key)` yields; refusals pass, skipped rows come at the end, summed."""
    skipped: dict[str, Counter[str]] = {}
    for key, of_key in grouped(_keyed(items, skipped)):
        if isinstance(of_key[0], LazyRecord):
            yield from of_key
        else:
            yield from each([(f"{source}-{key}", (key, of_key))], lambda _, keyed: make(*keyed), source)
    yield from (Skipped(source=name, rows=rows) for name, rows in skipped.items())


def _keyed(
    items: Iterable[tuple[str, Any] | LazyRecord | Skipped], skipped: dict[str, Counter[str]]
) -> Iterator[tuple[str, Any]]:
    for item in items:
        if isinstance(item, Skipped):
            skipped.setdefault(item.source, Counter()).update(item.rows)
        else:
            yield (f"\0{item.key}", item) if isinstance(item, LazyRecord) else item
