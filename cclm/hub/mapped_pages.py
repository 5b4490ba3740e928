"""A model whose weights are mapped from a file computes with few of their pages in memory: those of the module at work.

    forward of a module ── reads ──> pages of its weights become resident ── hook behind it ──> the kernel may drop them

The next use reads them again, from the page cache as a rule. Values never change: only pages of files are dropped, and
what is dropped is the file's own content. Linux; elsewhere nothing happens. Imports nothing of ours, because
`cclm/hub/clean_process.py` loads it by its path.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

MAPS = Path("/proc/self/maps")
Span = tuple[int, int]
"""First address, and the one behind the last."""


def drop_pages_after_use(model: nn.Module) -> int:
    """Have every module of `model` give up its mapped weights' pages when it has run; return the bytes concerned.

    Call it when the weights are in place: a tensor that is not mapped from a file now is left alone for ever.
    """
    files, total = mapped_files(), 0
    for module in model.modules():
        spans = [found for parameter in module.parameters(recurse=False) if (found := pages_of(parameter, files))]
        if spans:
            module.register_forward_hook(_dropping(spans))
            total += sum(end - start for start, end in spans)
    return total


def mapped_files() -> list[Span]:
    """Address ranges of this process behind which there is a file, neighbours joined."""
    spans: list[Span] = []
    lines = MAPS.read_text(encoding="utf-8", errors="replace").splitlines() if MAPS.exists() else []
    for line in lines:
        addresses, permissions, _, _, inode, *_ = line.split()
        # A shared mapping may be written to by others, and nobody's weights are: those are left alone.
        if inode == "0" or not permissions.endswith("p"):
            continue
        start, end = (int(text, 16) for text in addresses.split("-"))
        if spans and spans[-1][1] == start:
            start, _ = spans.pop()
        spans.append((start, end))
    return spans


def pages_of(tensor: Tensor, files: list[Span]) -> Span | None:
    """The whole pages that a tensor lies on, if all of them are mapped from a file."""
    if tensor.device.type != "cpu" or tensor.numel() == 0:
        return None
    storage = tensor.untyped_storage()
    start = storage.data_ptr() + int(tensor.storage_offset()) * tensor.element_size()
    end = start + tensor.numel() * tensor.element_size()
    first, last = start - start % mmap.PAGESIZE, end + -end % mmap.PAGESIZE
    return (first, last) if any(first >= low and last <= high for low, high in files) else None


def _dropping(spans: list[Span]) -> Callable[..., None]:
    madvise = ctypes.CDLL(None, use_errno=True).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

    def drop(*_: Any) -> None:
        if torch.is_grad_enabled():  # a backward pass would only read them again
            return
        for start, end in spans:
            madvise(start, end - start, mmap.MADV_DONTNEED)  # an advice: refused, it costs memory alone

    return drop
