"""The C library's heap, where the tensors of a CPU live.

glibc maps a large piece of memory anew each time, and gives it back to the system when it is freed. Of a training step,
whose tensors come and go in the same sizes, the kernel then clears hundreds of thousands of pages in each step. To
keep the memory is faster; to give it back before the largest pieces are wanted takes less of it.

A piece that is freed would hold the next one of its size, were it not for the few bytes before and after it that torch
needs to align its tensors: glibc keeps these in lists of small pieces, and what is freed does not grow together again.
With `NO_LISTS` in the environment when a process begins (it cannot be said later) it does, and so little need be given
back that this is hardly slower.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

NO_LISTS = "glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0"
"""For GLIBC_TUNABLES."""
SETTINGS = ("GLIBC_TUNABLES", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
"""Variables by which a user decides about it."""
TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4
"""Of `mallopt(3)`."""
LARGE_BYTES = 64 << 20
"""A piece of memory from which on `make_room` does something: giving back takes up to 0.1 s, and what was given back is
filled with zeros when it is wanted again."""
MAPPED_BYTES = (32 << 20) - 4096
"""About the largest threshold that glibc takes, from which on it maps a piece apart from the heap."""
BLOCK_BYTES = 4 << 20
DONT_NEED = 4
"""Of `madvise(2)`."""
_returns: list[Literal["nothing", "all", "part"]] = ["nothing"]
"""What this process gives back of freed memory before a large piece is wanted; set once, when it begins."""


def treat_freed_memory(way: str, environment: Mapping[str, str]) -> bool:
    """Let this process use freed memory again ("kept") or give it back early ("returned"); return whether it will.

    Nothing changes where the environment has a setting of its own (any but exactly `NO_LISTS`), or where the C library
    is another.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or any(name in environment and environment[name] != NO_LISTS for name in SETTINGS):
        return False
    if way == "kept":
        _returns[0] = "nothing"
        return bool(mallopt(MMAP_MAX, 0) and mallopt(TRIM_THRESHOLD, -1))
    _returns[0] = "part" if "GLIBC_TUNABLES" in environment and "VmHWM:" in _status() else "all"
    return _returns[0] == "all" or bool(mallopt(MMAP_THRESHOLD, MAPPED_BYTES) and mallopt(TRIM_THRESHOLD, -1))


def make_room(size_bytes: int) -> None:
    """If a piece of so many bytes is large, give back what lies free, or as much as would raise this process's peak."""
    if size_bytes < LARGE_BYTES or _returns[0] == "nothing":
        return
    if _returns[0] == "all":
        return_freed_memory()
        return
    _give_back(_memory_bytes("VmRSS") + size_bytes - _memory_bytes("VmHWM"))


def return_freed_memory() -> None:
    """Give freed memory back to the system, once."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _give_back(wanted: int) -> None:
    """Give about so many bytes back: take blocks of the heap, and tell the system that their pages are not needed."""
    library, page = ctypes.CDLL(None), mmap.PAGESIZE
    library.malloc.restype = ctypes.c_void_p
    blocks, before = list[int](), _memory_bytes("VmRSS")
    while before - _memory_bytes("VmRSS") < wanted and len(blocks) * BLOCK_BYTES < 2 * wanted:
        block = library.malloc(ctypes.c_size_t(BLOCK_BYTES))
        if block is None:  # a limit of addresses: what asked for room will say so
            break
        blocks.append(block)
        first, end = -(-block // page) * page, (block + BLOCK_BYTES) // page * page
        library.madvise(ctypes.c_void_p(first), ctypes.c_size_t(end - first), DONT_NEED)
    for block in blocks:
        library.free(ctypes.c_void_p(block))


def _memory_bytes(name: str) -> int:
    """A figure of this process: VmRSS, what it has; VmHWM, the most that it had."""
    return next(int(line.split()[1]) << 10 for line in _status().splitlines() if line.startswith(f"{name}:"))


def _status() -> str:
    path = Path("/proc/self/status")
    return path.read_text() if path.exists() else ""
