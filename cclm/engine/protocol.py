"""What a training loop may ask of an engine, whatever the batches are.

An engine owns the training module, its optimizer and its place among the ranks. The module maps a batch to `Losses` in
one forward call; nothing else of it is ever called while training: under ZeRO-3 parameters exist only inside that call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar

import torch
from torch import Tensor, nn


class EngineBatch(Protocol):
    """All that an engine looks at in a batch; its training module reads the rest."""

    @property
    def step(self) -> int:
        """The step it belongs to, counted from 0."""
        ...

    @property
    def update(self) -> int:
        """Which of the step's updates it belongs to, counted from 0."""
        ...


BatchType = TypeVar("BatchType", bound=EngineBatch, contravariant=True)
Outputs: TypeAlias = dict[str, Tensor]
"""What a probe computes, by name."""
Probe: TypeAlias = Callable[[nn.Module], Outputs]
"""Computes something with the training module, outside of training: `probe(module)`."""


class Losses(NamedTuple):
    """What one forward call returns; a tuple, because DeepSpeed's hooks look for tensors in those."""

    total: Tensor
    """Scalar to back-propagate. The mean of it over the ranks is the loss of the global batch."""
    metrics: dict[str, Tensor]
    """Detached scalars by name ("loss" is the total; "image_text/itc", "text_pair/ttm", "temperature", …): values of
    this rank's share, scaled so that their mean over the ranks is the value of the global batch."""


@dataclass(frozen=True, kw_only=True)
class StepStatistics:
    """What one optimizer update did."""

    grad_norm: float
    """Global L2 norm of the gradient before clipping."""
    learning_rates: Mapping[str, float]
    """Learning rate by parameter group name, as used by this update."""


class Engine(Protocol[BatchType]):
    """One process's handle on the (possibly distributed) training state."""

    rank: int
    world_size: int
    device: torch.device
    precision: str
    """"fp32" or "bf16": of the forward pass."""

    @property
    def description(self) -> str:
        """The engine for people: its kind, ZeRO stage, number of ranks and precision."""
        ...

    def forward(self, batch: BatchType) -> Losses:
        """Run the training module on this rank's batch."""
        ...

    def backward(self, losses: Losses) -> None:
        """Back-propagate `losses.total`."""
        ...

    def update(self, step: int) -> StepStatistics:
        """Clip, set the learning rates of `step`, update every parameter, clear gradients."""
        ...

    def abandon_step(self) -> None:
        """Forget the backward calls since the last update: the state that is saved next is the one after it.

        For a run that ends in the middle of a step; training cannot go on from here.
        """
        ...

    def reduce_mean(self, values: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the mean over the ranks of each scalar, of any type and device; the same keys on every rank.

        One collective.
        """
        ...

    def full_gradients(self) -> dict[str, Tensor]:
        """Return every parameter's full gradient on the CPU, between `backward` and `update` (for tests)."""
        ...

    def full_parameters(self) -> dict[str, Tensor]:
        """Return every parameter's full fp32 value on the CPU; on rank 0 only, empty elsewhere."""
        ...

    def evaluate(self, probe: Probe) -> Outputs:
        """Return `probe(module)`, run where all parameters exist, in evaluation mode and without gradients.

        A collective. Training goes on as if nothing had happened.
        """
        ...

    def save(self, folder: Path, client_state: Mapping[str, Any]) -> None:
        """Write this rank's share of the training state into `folder` (which `cclm.checkpoint` makes atomic).

        No collective: a rank that cannot write raises, and the others return.
        """
        ...

    def load(self, folder: Path) -> dict[str, Any]:
        """Restore what `save` wrote, on any number of ranks; return its client state."""
        ...
