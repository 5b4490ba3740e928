"""Where all randomness of the data comes from: counter-based generators addressed by what they are for.

Philox is a block cipher in counter mode: a key and a counter give the next numbers, with no state that runs along.
A generator's key holds the run's seed and its purpose, its counter holds the place (epoch, position, …). Two places
never share numbers, and the generator of any place is made in a few microseconds without visiting the ones before.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np

_WORD = (1 << 64) - 1


class Purpose(IntEnum):
    """What a generator is for; each has its own key and so its own numbers. Never renumber: runs depend on it.

    3 to 6 belong to views (`Source.sample_purpose`), as do all numbers from 16 on.
    """

    SHARDS = 1
    WINDOW = 2
    SCHEDULE = 7
    BUCKETS = 8


def keyed_generator(seed: int, purpose: int, source: int, place: tuple[int, int, int]) -> np.random.Generator:
    """A fresh generator of one place: three non-negative integers (epoch, lane, window and the like).

    The seed is taken modulo 2**64; `source` is the index of the corpus, 0 where it does not matter. The lowest word of
    the counter is left for the generator's own draws.
    """
    key = np.array([seed & _WORD, (int(purpose) << 32) | source], dtype=np.uint64)
    counter = np.array([0, *place], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))
