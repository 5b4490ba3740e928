"""What a training loop may ask of an engine, whatever the batches are; and what the plain engine and DeepSpeed's share.

An engine owns the training module, its optimizer and its place among the ranks. The module maps a batch to `Losses` in
one forward call; nothing else of it is ever called while training: under ZeRO-3 parameters exist only inside that call.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from cclm.distributed.agreement import hash63
from cclm.distributed.collectives import Collectives
from cclm.engine.fragments import ShareFile, share_path
from cclm.engine.module_order import ModuleOrder
from cclm.engine.optimizer import set_learning_rates
from cclm.engine.options import OptimizerConfig
from cclm.engine.rank_state import RankState
from cclm.ops.choice import Choice


class EngineBatch(Protocol):
    """All that an engine looks at in a batch; its training module reads the rest."""

    @property
    def step(self) -> int:
        """The step it belongs to, counted from 0."""

    @property
    def update(self) -> int:
        """Which of the step's updates it belongs to, counted from 0."""

    @property
    def part(self) -> int:
        """Which of the step's micro-batches it is, counted from 0."""


BatchType = TypeVar("BatchType", bound=EngineBatch, contravariant=True)
Probe: TypeAlias = Callable[[nn.Module], dict[str, Tensor]]
"""Computes something with the training module, outside of training: `probe(module)`, by name."""


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

    grad_norm: Tensor
    """Scalar, where it was computed: global L2 norm of the gradient before clipping; infinite if it is not finite."""
    learning_rates: Mapping[str, float]
    """Learning rate by parameter group name, as used by this update."""
    was_applied: bool = True
    """False: it was skipped, on every rank: no weight, moment or average has changed."""
    bad_gradients: Sequence[str] = ()
    """Of a skipped update: parameters whose gradient, or this rank's share of it, is not finite."""


class Updated(NamedTuple):
    """What an engine's own part of an update returns."""

    norm: Tensor | float
    """Before clipping; it need not be finite."""
    was_applied: bool
    bad_gradients: Sequence[str] = ()


class Door(nn.Module):
    """The one door to the training module, through which every forward pass goes, under autocast in bf16 and fp16.

    DeepSpeed hangs its hooks (gathering of parameters, begin of the backward pass) on this module and on those inside.
    They look for tensors in what a module returns; so what a probe computes goes out as `Losses` do.
    """

    def __init__(self, training_module: nn.Module, device: torch.device, precision: str) -> None:
        super().__init__()
        self.training_module = training_module
        self._device_type, self._precision = device.type, precision

    def forward(self, request: EngineBatch | Probe) -> Losses:
        """Return a batch's losses; for a probe, its outputs as the metrics."""
        dtype = torch.float16 if self._precision == "fp16" else torch.bfloat16
        with torch.autocast(self._device_type, dtype=dtype, enabled=self._precision != "fp32"):
            if callable(request):
                return Losses(total=torch.zeros(()), metrics=request(self.training_module))
            losses = self.training_module(request)
        assert isinstance(losses, Losses)
        return losses


class Engine(ABC, Generic[BatchType]):
    """One process's handle on the (possibly distributed) training state.

    With `accumulation_steps` G, G pairs of `forward` and `backward` come before each `update`; gradients are averaged
    over them.
    """

    description: str
    """The engine for people: its kind, ZeRO stage, number of ranks and precision."""
    runner: nn.Module
    """What forward calls go to: the door, or what DeepSpeed has put around it."""
    optimizer: Any
    """What holds the parameter groups."""
    kernel: Choice
    state: RankState
    """This rank's share of weights, moments and averages."""
    order: ModuleOrder | None = None
    """Of the modules that a step runs, where ranks must run them alike."""
    before_update: Callable[[], None] = staticmethod(lambda: None)
    """Is called before weights, moments and averages change: somebody may still read them."""

    def __init__(
        self,
        module: nn.Module,
        config: OptimizerConfig,
        *,
        collectives: Collectives,
        device: torch.device,
        precision: str,
        accumulation_steps: int,
        seed: int,
    ) -> None:
        self.module, self.collectives, self.device = module, collectives, device
        self.rank, self.world_size = collectives.rank, collectives.world_size
        self.precision = precision
        self.door = Door(module, device, precision)
        self._config, self._seed = config, seed
        self._accumulation_steps, self._num_backwards = accumulation_steps, 0

    def forward(self, batch: BatchType) -> Losses:
        """Run the training module on this rank's batch.

        Dropout is the only randomness of a forward call (masks, crops and negatives come with the batch). It is seeded
        by step and rank before each: no generator's state needs saving, a resumed run draws what the other had drawn.
        """
        self._seed_dropout(batch)
        losses: Losses = self.runner(batch)
        return losses

    def survey(self, batch: BatchType) -> dict[str, Tensor]:
        """Return the metrics of a forward call without gradients, with the dropout that `forward` will have.

        The module is called as in `forward`: ZeRO-3 fetches parameters ahead by the order in which modules ran.
        """
        self._seed_dropout(batch)
        with torch.no_grad():
            losses: Losses = self.runner(batch)
        return losses.metrics

    def _seed_dropout(self, batch: BatchType) -> None:
        number = batch.update * self._accumulation_steps + batch.part
        torch.manual_seed(hash63(f"step:{self._seed}:{batch.step}:{self.rank}:{number}"))

    def backward(self, losses: Losses) -> None:
        """Back-propagate `losses.total`."""
        assert self._num_backwards < self._accumulation_steps, "more backward calls than accumulation_steps"
        self._backward(losses.total)
        self._num_backwards += 1

    def update(self, step: int, max_norm: float = math.inf) -> StepStatistics:
        """Clip, set the learning rates of `step`, update every parameter, clear gradients.

        An update whose gradient norm is not finite, or above `max_norm`, is skipped: it leaves no trace. That norm is
        global already, so all ranks skip together and no collective is needed; the host learns of it where it waits for
        the norm in any case (DeepSpeed does at stages 1 to 3, the other engines do likewise).
        """
        assert self._num_backwards == self._accumulation_steps, "update before accumulation_steps backward calls"
        self._num_backwards = 0
        self.before_update()
        rates = set_learning_rates(self.optimizer, self._config, step)
        found, was_applied, bad_gradients = self._update(max_norm)
        if was_applied:
            self.state.update_average()
        norm = found.detach() if isinstance(found, Tensor) else torch.full((), found, dtype=torch.float64)
        norm = torch.where(norm.isfinite() & (norm >= 0), norm, torch.inf).reshape(())
        return StepStatistics(
            grad_norm=norm, learning_rates=rates, was_applied=was_applied, bad_gradients=bad_gradients
        )

    @abstractmethod
    def _backward(self, total: Tensor) -> None: ...

    @abstractmethod
    def _update(self, max_norm: float) -> Updated:
        """Clip and update; or leave all as it is, if the norm before clipping is not finite or above `max_norm`."""

    def abandon_step(self) -> None:
        """Forget the backward calls since the last update: the state that is saved next is the one after it.

        For a run that ends in the middle of a step; training cannot go on from here.
        """
        self._num_backwards = 0

    def reduce_mean(self, values: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the mean over the ranks of each scalar, of any type and device; the same keys on every rank.

        One all-reduce of float32 (float64 on CPU).
        """
        if not values:
            return {}
        dtype = torch.float64 if self.device.type == "cpu" else torch.float32
        names = sorted(values)
        stacked = torch.stack([values[name].detach().to(self.device, dtype).reshape(()) for name in names])
        by_name = dict(zip(names, (self.collectives.sum(stacked) / self.world_size).tolist(), strict=True))
        return {name: by_name[name] for name in values}

    def evaluate(self, probe: Probe) -> dict[str, Tensor]:
        """Return `probe(module)`, run where all parameters exist, in evaluation mode and without gradients.

        A collective. Training goes on as if nothing had happened.
        """
        with _evaluation_mode(self.runner), torch.no_grad():
            losses: Losses = self.runner(probe)
        return losses.metrics

    def save(self, folder: Path, client_state: Mapping[str, Any]) -> None:
        """Write this rank's share of the training state into `folder` (which `cclm.checkpoint` makes atomic).

        No collective: a rank that cannot write raises, and the others return.
        """
        self.share(client_state).write(share_path(folder, self.rank))

    def share(self, client_state: Mapping[str, Any]) -> ShareFile:
        """Return the file that `save` writes, for whoever copies it before the next update. No collective."""
        return self.state.share(client_state)

    def load(self, folder: Path) -> dict[str, Any]:
        """Restore bit by bit what any engine saved, on any number of ranks; return its client state. A collective.

        The bytes are not verified again: take a checkpoint that `cclm.checkpoint` has found sound.

        Raises:
            CheckpointError: on every rank, if it does not fit the module or cannot be read.
        """
        return self.state.load(folder)


def seed_initialisation(seed: int) -> None:
    """Seed torch before the module is built: the same weights on every rank and in both engines."""
    torch.manual_seed(hash63(f"initialisation:{seed}"))


@contextmanager
def _evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Every submodule in evaluation mode; afterwards each is in the mode that it was in."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode
