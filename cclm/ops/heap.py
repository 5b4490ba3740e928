"""The C library's heap, where the tensors of a CPU live.

glibc maps a large piece of memory anew each time, and gives it back to the system when it is freed. Of a training step,
whose tensors come and go in the same sizes, the kernel then clears hundreds of thousands of pages in each step. To
keep the memory is faster; to give it back before the largest pieces are wanted takes less of it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping

SETTINGS = ("GLIBC_TUNABLES", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
"""Variables by which a user decides about it."""
TRIM_THRESHOLD, MMAP_MAX = -1, -4
"""Of `mallopt(3)`."""
LARGE_BYTES = 64 << 20
"""A piece of memory from which on `make_room` does something: giving back takes up to 0.1 s, and what was given back is
filled with zeros when it is wanted again."""
_returns = [False]
"""Whether this process gives memory back; set once, when it begins."""


def treat_freed_memory(way: str, environment: Mapping[str, str]) -> bool:
    """Let this process use freed memory again ("kept") or give it back early ("returned"); return whether it will.

    Nothing changes where the environment has a setting of its own, or where the C library is another.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or any(name in environment for name in SETTINGS):
        return False
    _returns[0] = way == "returned"
    return _returns[0] or bool(mallopt(MMAP_MAX, 0) and mallopt(TRIM_THRESHOLD, -1))


def make_room(size_bytes: int) -> None:
    """Give back what lies free, if a piece of so many bytes is large and this process does so."""
    if size_bytes >= LARGE_BYTES and _returns[0]:
        return_freed_memory()


def return_freed_memory() -> None:
    """Give freed memory back to the system, once."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
