"""Entries of a corpus that cannot become records: drafts that go to quarantine when they are made."""

from __future__ import annotations

from functools import partial
from typing import Any, NoReturn

from cclm.errors import DataError
from shards.parts import LazyRecord, UnwantedError

MEND = "Correct the corpus, or leave it out."


def refuse(reason: str, expected: str, got: str, where: str, do: str = MEND) -> NoReturn:
    """Raise the DataError that sends a record to quarantine."""
    raise DataError(reason=reason, expected=expected, got=got, do=do, where=where)


def leave_out(reason: str, expected: str, got: str, where: str, do: str) -> NoReturn:
    """Raise what sends a sound record to quarantine, because the recipe does not want it."""
    raise UnwantedError(reason=reason, expected=expected, got=got, do=do, where=where)


def refused(
    *, key: str, source: str, reason: str, expected: str, got: str, where: str, do: str = MEND, unwanted: bool = False
) -> LazyRecord:
    """Return a draft that counts as a record and is refused with this reason, as bad or (`unwanted`) as left out."""
    raise_it = leave_out if unwanted else refuse
    return LazyRecord(key=key, source=source, make=partial(raise_it, reason, expected, got, where, do))


def broken_row(name: str, number: int, source: str, why: str, expected: str) -> LazyRecord:
    """Return the refusal of a line or row that cannot be read (reason line_broken)."""
    return refused(
        key=f"{name}:{number}",
        source=source,
        reason="line_broken",
        expected=expected,
        got=why,
        where=f"{name}:{number}",
    )


def broken_tail(name: str, number: int, source: str, why: str) -> LazyRecord:
    """Return the refusal of what follows row `number` in a file that breaks off (reason file_broken): one entry.

    How many records are lost with it cannot be known.
    """
    return refused(
        key=f"{name}:{number}-end",
        source=source,
        reason="file_broken",
        expected=f"a whole file; it was read up to row {number - 1}",
        got=why,
        where=name,
        do="Fetch the file again.",
    )


def first(value: Any, length: int = 80) -> str:
    """Return the beginning of a value, for a message."""
    text = repr(value)
    return text if len(text) <= length else f"{text[:length]}…"
