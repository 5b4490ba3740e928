"""What the training loop may ask of an engine.

An engine owns the training module, its optimizer and its place among the ranks. The module maps a `Batch` to
`Losses` in one forward call; nothing else of it is ever called while training (under ZeRO-3 parameters exist
only inside that call).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from cclm.data.batch import Batch


@dataclass(frozen=True, kw_only=True)
class Losses:
    """What one forward call returns."""

    total: Tensor
    """Scalar to back-propagate. The mean of it over the ranks is the loss of the global batch."""
    metrics: Mapping[str, Tensor]
    """Detached scalars by name ("loss" is the total; "image_text/itc", "text_pair/ttm", "temperature", …): values of
    this rank's share, scaled so that their mean over the ranks is the value of the global batch."""


@dataclass(frozen=True, kw_only=True)
class StepStatistics:
    """What one optimizer update did."""

    grad_norm: float
    """Global L2 norm of the gradient before clipping."""
    learning_rates: Mapping[str, float]
    """Learning rate by parameter group name, as used by this update."""


class Engine(Protocol):
    """One process's handle on the (possibly distributed) training state."""

    rank: int
    world_size: int
    device: torch.device
    precision: str
    """"fp32" or "bf16": of the forward pass."""

    @property
    def description(self) -> str:
        """The engine in words, for reports."""
        ...

    def forward(self, batch: Batch) -> Losses:
        """Run the training module on this rank's batch."""
        ...

    def backward(self, losses: Losses) -> None:
        """Back-propagate `losses.total`."""
        ...

    def update(self, step: int) -> StepStatistics:
        """Clip, set the learning rates of `step`, update every parameter, clear gradients."""
        ...

    def reduce_mean(self, values: Mapping[str, Tensor]) -> dict[str, float]:
        """Mean over the ranks of each scalar, of any type and device; the same keys on every rank. One collective."""
        ...

    def full_gradients(self) -> dict[str, Tensor]:
        """Every parameter's full gradient on the CPU, between `backward` and `update` (tests and probes)."""
        ...

    def full_parameters(self) -> dict[str, Tensor]:
        """Every parameter's full fp32 value on the CPU; on rank 0 only, empty elsewhere."""
        ...

    def evaluate(self, function: Callable[[nn.Module], dict[str, Tensor]]) -> dict[str, Tensor]:
        """`function(module)` where all parameters exist, in evaluation mode and without gradients. A collective.

        Training goes on as if nothing had happened.
        """
        ...

    def save(self, folder: Path, client_state: Mapping[str, Any]) -> None:
        """Write this rank's share of the training state into `folder` (which `cclm.checkpoint` makes atomic)."""
        ...

    def load(self, folder: Path) -> dict[str, Any]:
        """Restore what `save` wrote; returns its client state."""
        ...
