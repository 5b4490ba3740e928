"""A checkpoint of ZeRO ranks becomes the state of another number of ranks: each takes, from the mapped files of all old
ranks, the stretches of every parameter that it holds now.

    files of 4 ranks  ── stored_state ──> name → tensor, still in the files ── stretches ──> fragments of 2 ranks

Values are copied, never computed, so they are bit by bit those of the checkpoint, and no rank holds more than its
share. DeepSpeed's own way, its universal checkpoint, first writes every parameter into files of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cclm.engine.stored_weights import MOMENTS, StoredState, StoredTensor


@torch.no_grad()
def fill_buffers(module: nn.Module, stored: Mapping[str, StoredTensor]) -> None:
    """Copy buffers that the checkpoint holds; those that are made anew at each start are not in it."""
    for name, buffer in module.named_buffers():
        if name in stored:
            buffer.copy_(stored[name].whole())


def make_moments(optimizer: torch.optim.Optimizer, flat: Sequence[Tensor], stored: StoredState) -> None:
    """Give every flat parameter of a rank moments of zeros, which AdamW itself would make at its first update, and the
    count of updates of the checkpoint."""
    for values in flat:
        state: dict[str, Any] = optimizer.state[values]
        for key in MOMENTS:
            if key not in state:
                state[key] = torch.zeros_like(values)
        if isinstance(state.get("step"), int):  # DeepSpeed's CPU Adam counts in plain numbers
            state["step"] = int(stored.updates)
        else:
            state["step"] = torch.tensor(stored.updates, dtype=torch.float32)
