"""The same bits each time, on a GPU, too: `deterministic: true`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

WORKSPACE, WORKSPACE_VALUE = "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
"""cuBLAS sums in one order only with a workspace of its own for each stream: 8 of 4 MiB."""


@contextmanager
def deterministic(is_wanted: bool) -> Iterator[None]:
    """Let torch take deterministic kernels alone inside. Enter it before CUDA is started: cuBLAS looks only then.

    Without it a step on a CPU has the same bits each time anyway.
    """
    if not is_wanted:
        yield
        return
    os.environ.setdefault(WORKSPACE, WORKSPACE_VALUE)
    memory: Any = torch.utils.deterministic
    before, fills = torch.are_deterministic_algorithms_enabled(), memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    memory.fill_uninitialized_memory = False  # a pass over all new memory, for readers of garbage
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        memory.fill_uninitialized_memory = fills
