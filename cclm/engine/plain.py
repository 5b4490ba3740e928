"""The slow twin of the DeepSpeed engine: one process, plain torch, nothing hidden.

It runs the global batch in one forward call. Whatever the DeepSpeed engine computes on W ranks is compared with this
(tests/parity/test_engine.py, tests/ranks).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, Literal

import torch
from torch import Tensor, nn

from cclm.engine.adamw import adamw_state
from cclm.engine.fragments import WEIGHTS, Fragment
from cclm.engine.optimizer import build_adamw, parameter_groups, set_learning_rates
from cclm.engine.options import OptimizerConfig
from cclm.engine.protocol import BatchType, Losses, Outputs, Probe, StepStatistics
from cclm.engine.rank_state import RankState
from cclm.engine.seeding import seed_step


class PlainEngine(Generic[BatchType]):
    """One process's training state, whole.

    A parameter that a step does not use has a zero gradient (not none): its moments decay and it is still decayed, as
    under ZeRO, which updates flat blocks of parameters.
    """

    rank = 0
    world_size = 1

    def __init__(
        self,
        module: nn.Module,
        optimizer: OptimizerConfig,
        *,
        seed: int = 0,
        device: torch.device | str = "cpu",
        precision: Literal["fp32", "bf16"] = "fp32",
        accumulation_steps: int = 1,
    ) -> None:
        """Take over `module` (maps a batch to Losses); `seed` is for dropout.

        With `accumulation_steps` G, G pairs of `forward` and `backward` come before each `update`; gradients are
        averaged over them.
        """
        self.module = module.to(device)
        self.device = torch.device(device)
        self._config = optimizer
        self._optimizer = build_adamw(parameter_groups(module, optimizer), optimizer)
        self._state = WholeState(self.module, self._optimizer)
        self._state.start_average(optimizer.ema_decay, self.device)
        self._seed = seed
        self.precision: str = precision
        self._accumulation_steps = accumulation_steps
        self._num_backwards = 0

    def forward(self, batch: BatchType) -> Losses:
        """Run the module on the whole batch."""
        seed_step(self._seed, batch.step, self.rank, batch.update * self._accumulation_steps + self._num_backwards)
        with autocast(self.device, self.precision):
            losses = self.module(batch)
        assert isinstance(losses, Losses)
        return losses

    def backward(self, losses: Losses) -> None:
        """Add the gradient of `losses.total`."""
        assert self._num_backwards < self._accumulation_steps, "more backward calls than accumulation_steps"
        (losses.total / self._accumulation_steps).backward()  # type: ignore[no-untyped-call]
        self._num_backwards += 1

    def update(self, step: int) -> StepStatistics:
        """Clip and update. A gradient that is not finite leaves every parameter as it is."""
        assert self._num_backwards == self._accumulation_steps, "update before accumulation_steps backward calls"
        self._num_backwards = 0
        rates = set_learning_rates(self._optimizer, self._config, step)
        parameters = [parameter for parameter in self.module.parameters() if parameter.requires_grad]
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        norm = float(nn.utils.clip_grad_norm_(parameters, self._config.max_grad_norm or math.inf))
        if math.isfinite(norm):
            self._optimizer.step()
        self._optimizer.zero_grad()
        self._state.update_average()
        return StepStatistics(grad_norm=norm if math.isfinite(norm) else math.inf, learning_rates=rates)

    def abandon_step(self) -> None:
        """Forget the backward calls since the last update."""
        self._num_backwards = 0
        self._optimizer.zero_grad()

    def reduce_mean(self, values: Mapping[str, Tensor]) -> dict[str, float]:
        """The values as floats."""
        if not values:
            return {}
        stacked = stack_scalars(list(values.values()), self.device, torch.float64)
        return dict(zip(values, stacked.tolist(), strict=True))

    def full_gradients(self) -> dict[str, Tensor]:
        """Gradients by parameter name; zeros where the step did not use a parameter."""
        return {
            name: torch.zeros(parameter.shape) if parameter.grad is None else parameter.grad.float().cpu().clone()
            for name, parameter in self.module.named_parameters()
            if parameter.requires_grad
        }

    def full_parameters(self) -> dict[str, Tensor]:
        """Values by parameter name."""
        return {name: parameter.detach().cpu().clone() for name, parameter in self.module.named_parameters()}

    @property
    def description(self) -> str:
        """The engine for people."""
        return f"plain engine, one process, {self.precision}"

    def evaluate(self, probe: Probe) -> Outputs:
        """Return `probe(module)`, in evaluation mode and without gradients."""
        with evaluation_mode(self.module), torch.no_grad(), autocast(self.device, self.precision):
            return probe(self.module)

    def save(self, folder: Path, client_state: Mapping[str, Any]) -> None:
        """Write the state as the share of the only rank."""
        self._state.save(folder, client_state)

    def load(self, folder: Path) -> dict[str, Any]:
        """Restore what any engine saved, bit by bit."""
        return self._state.load(folder)


class WholeState(RankState):
    """The training state of one process, whole."""

    rank, world_size = 0, 1

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.module, self._optimizer = module, optimizer

    def fragments(self, kind: str) -> list[Fragment]:
        """Return the trainable parameters, or their moments."""
        trained = [(name, value) for name, value in self.module.named_parameters() if value.requires_grad]
        return [
            _whole(name, value if kind == WEIGHTS else adamw_state(self._optimizer, value)[kind])
            for name, value in trained
        ]

    def frozen(self) -> list[Fragment]:
        """Return the parameters that no update moves."""
        return [_whole(name, value) for name, value in self.module.named_parameters() if not value.requires_grad]

    def optimizer_states(self) -> list[dict[str, Any]]:
        """Return what AdamW keeps of each parameter."""
        return list(self._optimizer.state.values())


def _whole(name: str, value: Tensor) -> Fragment:
    return Fragment(name=name, shape=tuple(value.shape), start=0, values=value.detach().view(-1))


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Every submodule in evaluation mode; afterwards each is in the mode that it was in."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context in which a forward call runs: bf16 autocast, or nothing."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def stack_scalars(values: Sequence[Tensor], device: torch.device, dtype: torch.dtype) -> Tensor:
    """One vector of scalars that may come from several devices (counts of the host beside metrics) and types."""
    return torch.stack([value.detach().to(device=device, dtype=dtype).reshape(()) for value in values])
