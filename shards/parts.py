"""What a corpus yields: parts, which yield records that are not made yet, or refusals, which go to quarantine.

corpus function(**options) -> Sequence[Part]  --read-->  LazyRecord       --make-->  record, or DataError
                                                         Skipped  --------->  a count in the manifest

file --guarded--> (place, entry or error) --each--> records and refusals
                                           --joined--> the same, of entries with one key, however far apart they lie

Few entries are joined in memory, keys in the order of their first entries; many are spread by a hash of the key over
temporary files, which are gathered one after another.
"""

from __future__ import annotations

import hashlib
import itertools
import pickle
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, Final, NoReturn, TypeVar

from cclm.errors import DataError
from cclm.rows.guard import MEND, data_error, mistaken
from cclm.types import ImageTextRecord, TextPair

Entry = TypeVar("Entry")
Yielded = TypeVar("Yielded")
ITEMS_IN_MEMORY: Final = 200_000
"""More than this are spilled: some hundred MB of captions."""
NUM_FILES: Final = 128
"""So many times more fit before a file is itself spread again."""
_ITEMS_PER_CHUNK: Final = 256
_MAX_DEPTH: Final = 4
"""128^4 times as many: beyond that, only one key with too many items is left, and they belong together."""


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


Keyed = Iterator[tuple[str, Any] | LazyRecord | Skipped]
"""(key, item), refusals, and counts of what was skipped."""


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
        mistaken("a readable file", str(error.strerror), "Correct the path.", path)
    return f"{status.st_size}-{status.st_mtime_ns}"


def leave_out(reason: str, expected: str, got: str, do: str = MEND) -> NoReturn:
    """Raise what sends a sound entry to quarantine, because the recipe does not want it."""
    raise UnwantedError(reason=reason, expected=expected, got=got, do=do)


def refused(error: DataError, key: str, source: str) -> LazyRecord:
    """Return a record that counts and is refused with this error when it is made."""
    return LazyRecord(key=key, source=source, make=partial(_raise, error))


def _raise(error: DataError) -> NoReturn:
    raise error


def each(
    entries: Iterable[tuple[str, Entry | DataError]], make: Callable[[str, Entry], Iterable[Yielded]], source: str
) -> Iterator[Yielded | LazyRecord]:
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
    make: Callable[[str, list[Any]], Iterable[Yielded]],
    source: str,
) -> Iterator[Yielded | LazyRecord | Skipped]:
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


def grouped(
    items: Iterable[tuple[str, Entry]], in_memory: int = ITEMS_IN_MEMORY, depth: int = 0
) -> Iterator[tuple[str, list[Entry]]]:
    """Yield each key once, with its (picklable) items in their order; the order of keys depends on the items alone.

    So many items are held `in_memory` at once; `depth` is how often these were spread already.
    """
    source = iter(items)
    begun = list(itertools.islice(source, in_memory))
    following = list(itertools.islice(source, 1))
    if not following or depth == _MAX_DEPTH:
        groups: dict[str, list[Entry]] = {}
        for key, item in itertools.chain(begun, following, source):
            groups.setdefault(key, []).append(item)
        yield from groups.items()
        return
    with ExitStack() as stack:
        # Unnamed files: a killed build leaves none behind.
        files = [stack.enter_context(tempfile.TemporaryFile("w+b")) for _ in range(NUM_FILES)]
        _spread(itertools.chain(begun, following, source), files, depth)
        begun.clear()
        for file in files:
            yield from grouped(_items_of(file), in_memory, depth + 1)


def _spread(items: Iterable[tuple[str, Any]], files: Sequence[IO[bytes]], depth: int) -> None:
    chunks: list[list[tuple[str, Any]]] = [[] for _ in files]
    salt = depth.to_bytes(1, "little")
    for key, item in items:
        digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8, salt=salt).digest()
        number = int.from_bytes(digest, "little") % len(files)
        chunks[number].append((key, item))
        if len(chunks[number]) == _ITEMS_PER_CHUNK:
            pickle.dump(chunks[number], files[number], protocol=5)
            chunks[number].clear()
    for chunk, file in zip(chunks, files, strict=True):
        pickle.dump(chunk, file, protocol=5)
        file.seek(0)


def _items_of(file: IO[bytes]) -> Iterator[tuple[str, Any]]:
    with suppress(EOFError):
        while True:
            yield from pickle.load(file)
