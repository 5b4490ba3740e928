"""Which keys of a set have come before, at eight bytes a key: a set of a hundred million fits into a gigabyte."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np


class SeenKeys:
    """Keys by their 64-bit hashes: those of the open shard in a set, the others in a few sorted arrays.

    Two different keys are taken for one with probability n² / 2⁶⁵: three in ten thousand for a hundred million keys.
    """

    def __init__(self) -> None:
        self._open: set[int] = set()
        self._arrays: list[Any] = []

    def add(self, key: str) -> bool:
        """Remember a key; return whether it is new."""
        digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        number = int.from_bytes(digest, "little")
        if number in self._open or any(_holds(array, number) for array in self._arrays):
            return False
        self._open.add(number)
        return True

    def end_shard(self) -> None:
        """Pack the keys of a shard that is done. Arrays of like size are merged, so there are few."""
        array = np.fromiter(self._open, dtype=np.uint64, count=len(self._open))
        array.sort()
        self._open = set()
        while self._arrays and len(self._arrays[-1]) <= 2 * len(array):
            array = np.concatenate((self._arrays.pop(), array))
            array.sort()
        self._arrays.append(array)


def _holds(array: Any, number: int) -> bool:
    place = int(array.searchsorted(np.uint64(number)))
    return place < len(array) and int(array[place]) == number
