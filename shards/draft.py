"""What a corpus yields: a record that is not made yet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cclm.types import ImageTextRecord, TextPair

Made = ImageTextRecord | Sequence[TextPair]
"""An image with its captions, or one group of sentence pairs."""


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A record before its costly part (reading, rendering). It crosses process borders, so it must be picklable."""

    key: str
    """The record's key, or the group's name: unique in its set. Its hash decides the place in the set."""
    source: str
    """Corpus or artist: whom the statistics of refused records count."""
    make: Callable[[], Made]
    """Makes the record: a `functools.partial` of a plain function. DataError: the record goes to quarantine."""
    stamp: str = ""
    """Changes when the content does (a hash, or size and time of a file): tells an old build from this one."""
