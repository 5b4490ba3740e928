"""Text for people: tables, durations, lists of numbers, the word that was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

MINUTE_S, HOUR_S, DAY_S = 60, 3600, 86400


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = ()) -> str:
    """Lay out rows under a head: columns as wide as their longest word, the last as long as it likes.

    `right`: names of the columns that are flush right.
    """
    lines = [list(head), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if name in right else cell.ljust(width)
            for name, cell, width in zip(head, line, widths, strict=True)
        ).rstrip()
        for line in lines
    )


def visible(text: str) -> str:
    """Return a text whose control characters, which could end a line or colour a terminal, are written as escapes."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def duration(seconds: float) -> str:
    """Say a duration with its two largest units at most: "41 s", "12 min", "3 h 20 min", "2 d 4 h"."""
    whole = round(seconds)
    if whole < 2 * MINUTE_S:
        return f"{max(whole, 0)} s"
    if whole < HOUR_S:
        return f"{whole // MINUTE_S} min"
    if whole < DAY_S:
        return f"{whole // HOUR_S} h {whole % HOUR_S // MINUTE_S} min"
    return f"{whole // DAY_S} d {whole % DAY_S // HOUR_S} h"


def nearest_word(word: str, known: Iterable[str], *, cutoff: float = 0.6) -> str:
    """Return the known word that was probably meant; "" if none is like it."""
    return next(iter(difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)), "")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return the end of a message that names the word that was probably meant; "" if none is like it."""
    near = nearest_word(word, known)
    return f"; did you mean {near}?" if near else ""


def spans(numbers: Iterable[int]) -> str:
    """Say sorted numbers in short: 0-3,7."""
    found: list[list[int]] = []
    for number in sorted(numbers):
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ",".join(f"{first}-{last}" if last > first else f"{first}" for first, last in found)
