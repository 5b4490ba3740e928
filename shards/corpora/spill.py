"""Items with one key brought together, however far apart they lie and however many there are.

    few items    in memory, keys in the order of their first items
    many         spread by a hash of the key over temporary files, which are gathered one after another

Used where an annotation names an image by an id: captions of one image, translations from a second file, links.
"""

from __future__ import annotations

import hashlib
import itertools
import pickle
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import BinaryIO, Final, TypeVar, cast

Item = TypeVar("Item")

ITEMS_IN_MEMORY: Final = 200_000
"""More than this are spilled: some hundred MB of captions."""
NUM_FILES: Final = 128
"""So many times more fit before a file is itself spread again."""
_ITEMS_PER_CHUNK: Final = 256
_MAX_DEPTH: Final = 4
"""128^4 times as many: beyond that, only one key with too many items is left, and they belong together."""


def grouped(
    items: Iterable[tuple[str, Item]], in_memory: int = ITEMS_IN_MEMORY, depth: int = 0
) -> Iterator[tuple[str, list[Item]]]:
    """Yield each key once, with its items in their order. The order of keys depends on the items alone.

    Args:
        items: (key, item); items must be picklable.
        in_memory: how many items are held at once.
        depth: how often these items were spread already.
    """
    source = iter(items)
    begun = list(itertools.islice(source, in_memory))
    following = next(source, None)
    if following is None or depth == _MAX_DEPTH:
        rest = [] if following is None else [following]
        yield from _gathered(itertools.chain(begun, rest, source)).items()
        return
    with ExitStack() as stack:
        # Unnamed files: a killed build leaves none behind.
        files = [cast(BinaryIO, stack.enter_context(tempfile.TemporaryFile("w+b"))) for _ in range(NUM_FILES)]
        _spread(itertools.chain(begun, [following], source), files, depth)
        begun.clear()
        for file in files:
            yield from grouped(_items_of(file), in_memory, depth + 1)


def _gathered(items: Iterable[tuple[str, Item]]) -> dict[str, list[Item]]:
    groups: dict[str, list[Item]] = {}
    for key, item in items:
        groups.setdefault(key, []).append(item)
    return groups


def _spread(items: Iterable[tuple[str, Item]], files: list[BinaryIO], depth: int) -> None:
    chunks: list[list[tuple[str, Item]]] = [[] for _ in files]
    salt = depth.to_bytes(1, "little")
    for key, item in items:
        digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8, salt=salt).digest()
        number = int.from_bytes(digest, "little") % len(files)
        chunks[number].append((key, item))
        if len(chunks[number]) == _ITEMS_PER_CHUNK:
            pickle.dump(chunks[number], files[number], protocol=5)
            chunks[number] = []
    for chunk, file in zip(chunks, files, strict=True):
        if chunk:
            pickle.dump(chunk, file, protocol=5)
        file.seek(0)


def _items_of(file: BinaryIO) -> Iterator[tuple[str, Item]]:
    while True:
        try:
            chunk: list[tuple[str, Item]] = pickle.load(file)
        except EOFError:
            return
        yield from chunk
