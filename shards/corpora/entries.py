"""Entries of a corpus: each becomes records, or a refusal with its reason and place, which goes to quarantine.

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
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from typing import IO, Any, Final, NoReturn, TypeVar

from cclm.errors import DataError
from cclm.rows.guard import MEND, data_error
from shards.parts import LazyRecord, Skipped, UnwantedError

Entry = TypeVar("Entry")
Made = TypeVar("Made")
Keyed = Iterator[tuple[str, Any] | LazyRecord | Skipped]
"""(key, item), refusals, and counts of what was skipped."""

ITEMS_IN_MEMORY: Final = 200_000
"""More than this are spilled: some hundred MB of captions."""
NUM_FILES: Final = 128
"""So many times more fit before a file is itself spread again."""
_ITEMS_PER_CHUNK: Final = 256
_MAX_DEPTH: Final = 4
"""128^4 times as many: beyond that, only one key with too many items is left, and they belong together."""


def leave_out(reason: str, expected: str, got: str, do: str = MEND) -> NoReturn:
    """Raise what sends a sound entry to quarantine, because the recipe does not want it."""
    raise UnwantedError(reason=reason, expected=expected, got=got, do=do)


def refused(error: DataError, key: str, source: str) -> LazyRecord:
    """Return a record that counts and is refused with this error when it is made."""
    return LazyRecord(key=key, source=source, make=partial(_raise, error))


def _raise(error: DataError) -> NoReturn:
    raise error


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


def grouped(
    items: Iterable[tuple[str, Entry]], in_memory: int = ITEMS_IN_MEMORY, depth: int = 0
) -> Iterator[tuple[str, list[Entry]]]:
    """Yield each key once, with its items in their order. The order of keys depends on the items alone.

    Args:
        items: (key, item); items must be picklable.
        in_memory: how many items are held at once.
        depth: how often these items were spread already.
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
