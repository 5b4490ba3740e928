"""Rows of numbers that all ranks read: in memory, or, when there are very many, mapped from a file that rank 0 writes.

What is mapped counts as the system's cache, which all ranks of a node share and which gives way when memory is needed.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cclm.distributed.collectives import Collectives
from cclm.files.atomic import make_folder, sync

IN_MEMORY_BYTES = 256 << 20
"""Larger ones are mapped: 262,144 rows of 256 floats."""


def stays_in_memory(size_bytes: int) -> bool:
    """Return whether rows of so many bytes are little."""
    return size_bytes <= IN_MEMORY_BYTES


@dataclass(frozen=True)
class ChosenRows:
    """Some rows of many, which are put together only as far as they are asked for."""

    values_NE: Tensor
    number_R: Tensor

    def __len__(self) -> int:
        return len(self.number_R)

    def __getitem__(self, rows: Any) -> Tensor:
        return self.values_NE[self.number_R[rows]]


class RowFiles:
    """Where rows lie that do not stay in memory."""

    def __init__(self, folder: Path, ranks: Collectives) -> None:
        self.folder, self.ranks = folder, ranks

    def clear(self) -> None:
        """Remove what lies there, on rank 0: nobody may read it any more."""
        if self.ranks.rank == 0:
            shutil.rmtree(self.folder, ignore_errors=True)

    def rows(self, name: str, parts: Iterable[Tensor], count: int) -> Tensor:
        """Return all rows of parts, which every rank has: `count` of them, float32, on the CPU. A collective."""
        rest = iter(parts)
        first = next(rest)
        if stays_in_memory(count * first[:1].nbytes):
            return torch.cat([first, *rest])
        path = self.folder / f"{name}.npy"
        self._write(path, chain([first], rest), (count, *first.shape[1:]))
        self.ranks.barrier()
        return torch.from_numpy(np.load(path, mmap_mode="c"))

    def _write(self, path: Path, parts: Iterator[Tensor], shape: tuple[int, ...]) -> None:
        """Write the parts on rank 0; the others only take them out of the iterator, which is a collective."""
        file = None
        if self.ranks.rank == 0:
            make_folder(path.parent)
            path.unlink(missing_ok=True)  # who maps the one before keeps it
            file = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
        first = 0
        for part in parts:
            if file is not None:
                file[first : first + len(part)] = part.numpy()
            first += len(part)
        assert first == shape[0], f"{first} of {shape[0]} rows"
        if file is not None:
            file.flush()
            sync(path)
