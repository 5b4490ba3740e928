"""What a corpus yields: parts, which yield records that are not made yet; and how tasks share them.

corpus function(**options) -> Sequence[Part]  --read-->  LazyRecord       --make-->  record, or DataError
                                                         Skipped  --------->  a count in the manifest
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cclm.errors import ConfigError, DataError
from cclm.types import ImageTextRecord, TextPair


class UnwantedError(DataError):
    """A sound record that an option of its corpus leaves out: quarantined as if a filter refused it, not as bad."""


Made = ImageTextRecord | Sequence[TextPair]
"""An image with its captions, or sentence pairs of one group (often one pair)."""


@dataclass(frozen=True, kw_only=True)
class LazyRecord:
    """A record before its costly part (reading, rendering)."""

    key: str
    """Image: the record's key, unique in its set. Text: the group's name; records of one name become one group,
    wherever they lie in the corpus, so a reader need not collect them. A hash of the key decides the place in the
    set."""
    source: str
    """Corpus or artist: whom the statistics of refused records count."""
    make: Callable[[], Made]
    """Makes the record. DataError: the record goes to quarantine."""


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """Rows of a part that are not read, because the recipe does not want their language.

    They are millions where a corpus has hundreds of languages: they are counted, not listed in quarantine.
    """

    source: str
    rows: Mapping[str, int]
    """By language, as the corpus names it. Not more than some thousand languages: the manifest lists them."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A piece of a corpus that is read on its own: a file, a tar, a range of lines.

    Parts are what processes and machines share among themselves, so a large corpus should have many (one for each of
    its files; some hundred MB). They depend on the corpus alone, never on how many will read them.
    """

    name: str
    """Unique in its corpus, the same wherever the corpus lies: a file's name, not its folder."""
    read: Callable[[], Iterator[LazyRecord | Skipped]]
    """Yields the lazy records and, anywhere between them, what it skips, always in the same order, holding few of them
    in memory. It crosses process borders, so it can be pickled. ConfigError: the corpus
    is not what the recipe says."""
    stamp: str = ""
    """Changes when the content does (a hash, or size and time of the file): tells an old build from this one."""


def file_stamp(path: Path) -> str:
    """Return size and time of a file: a stamp that costs nothing. ConfigError: it cannot be read."""
    try:
        status = path.stat()
    except OSError as error:
        got, do = str(error.strerror), "Correct the path."
        raise ConfigError(expected="a readable file", got=got, do=do, where=str(path)) from error
    return f"{status.st_size}-{status.st_mtime_ns}"


@dataclass(frozen=True, kw_only=True)
class Share:
    """Task `number` of `of`, counted from 0 as Slurm does with `--array=0-N`."""

    number: int
    of: int


WHOLE: Final = Share(number=0, of=1)


def read_share(text: str) -> Share:
    """Return the share that a command line names as "I/N"."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not int(match[1]) < int(match[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N with I from 0 to N - 1")
    return Share(number=int(match[1]), of=int(match[2]))
