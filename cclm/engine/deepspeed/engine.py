"""DeepSpeed, ZeRO stages 0 to 3, behind the Engine protocol. Only this folder imports deepspeed.

door.py          the one module that DeepSpeed sees         construction.py  models and engines are made
state_shards.py  a rank's share of the training state       quirks.py        what DeepSpeed gets wrong, and what we do
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Generic

import torch
from torch import Tensor, nn

from cclm.distributed.agreement import check_same_step
from cclm.distributed.collectives import Collectives
from cclm.distributed.together import on_every_rank
from cclm.distributed.topology import Topology
from cclm.engine.deepspeed import quirks
from cclm.engine.deepspeed.construction import initialise, whole_value
from cclm.engine.deepspeed.door import Door, ProbeRequest
from cclm.engine.deepspeed.state_shards import ShardedState
from cclm.engine.ds_config import offloads_optimizer, zero_stage
from cclm.engine.optimizer import parameter_groups, set_learning_rates
from cclm.engine.options import OptimizerConfig
from cclm.engine.plain import evaluation_mode, stack_scalars
from cclm.engine.protocol import BatchType, Losses, Outputs, Probe, StepStatistics
from cclm.engine.seeding import seed_step


class DeepSpeedEngine(Generic[BatchType]):
    """This rank's share of the training state. Make it inside `cclm.distributed.topology.process_group`."""

    def __init__(
        self,
        module: nn.Module,
        optimizer: OptimizerConfig,
        *,
        ds_config: Mapping[str, Any],
        topology: Topology,
        collectives: Collectives,
        seed: int = 0,
    ) -> None:
        """Shard `module` (built alike on every rank) and its AdamW state.

        Args:
            module: maps a batch to Losses; a parameter may be touched only inside its forward.
            optimizer: AdamW and its schedule.
            ds_config: resolved by `ds_config.resolve_ds_config`.
            topology: this process's place.
            collectives: over the same ranks.
            seed: for dropout.
        """
        quirks.check_parameters_have_dimensions(module)
        self.rank, self.world_size, self.device = topology.rank, topology.world_size, topology.device
        self.precision = "bf16" if ds_config.get("bf16", {}).get("enabled") else "fp32"
        self.stage = zero_stage(ds_config)
        self._config, self._seed, self._collectives = optimizer, seed, collectives
        self._accumulation_steps = int(ds_config["gradient_accumulation_steps"])
        self._owns_boundary = quirks.owns_boundary(ds_config)
        self._num_backwards = 0
        self._module = module
        groups = parameter_groups(module, optimizer)
        self._engine = initialise(Door(module, topology.device, self.precision), groups, optimizer, ds_config, topology)
        self._state = ShardedState(self._engine, module, self.stage, topology)
        beside = torch.device("cpu") if offloads_optimizer(ds_config) else self.device
        self._state.start_average(optimizer.ema_decay, beside)

    @property
    def description(self) -> str:
        """The engine for people."""
        return f"DeepSpeed, ZeRO stage {self.stage}, {self.world_size} ranks, {self.precision}"

    def forward(self, batch: BatchType) -> Losses:
        """Run the module on this rank's samples.

        Raises:
            ConfigError: the ranks do not see the same step.
        """
        check_same_step(self._collectives, batch.step, batch)
        seed_step(self._seed, batch.step, self.rank, batch.update * self._accumulation_steps + self._num_backwards)
        losses: Losses = self._engine(batch)
        return losses

    def backward(self, losses: Losses) -> None:
        """Back-propagate; the last of an update's backward calls averages gradients over the ranks."""
        assert self._num_backwards < self._accumulation_steps, "more backward calls than accumulation_steps"
        if self._num_backwards == 0:
            quirks.clear_stale_gradients(self._engine.optimizer, self.stage)
        self._engine.backward(losses.total)
        self._num_backwards += 1
        if self._num_backwards < self._accumulation_steps and not self._owns_boundary:
            self._engine.step()  # counts the micro-step; the update comes at the boundary

    def update(self, step: int) -> StepStatistics:
        """Clip and update. A gradient that is not finite leaves every parameter as it is (stages 1 to 3)."""
        assert self._num_backwards == self._accumulation_steps, "update before accumulation_steps backward calls"
        self._num_backwards = 0
        rates = set_learning_rates(self._engine.optimizer, self._config, step)
        norm = 0.0
        if self.stage == 0:
            norm = quirks.prepare_stage_0([value for value in self._module.parameters() if value.requires_grad])
        self._engine.step()
        if self.stage > 0:
            norm = float(self._engine.get_global_grad_norm())
        self._state.update_average()
        return StepStatistics(grad_norm=norm if math.isfinite(norm) and norm >= 0 else math.inf, learning_rates=rates)

    def abandon_step(self) -> None:
        """Forget the backward calls since the last update. DeepSpeed keeps their gradients, and nothing reads them."""
        self._num_backwards = 0

    def reduce_mean(self, values: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the mean over the ranks of each scalar, in one all-reduce of float32 (float64 on CPU)."""
        if not values:
            return {}
        dtype = torch.float64 if self.device.type == "cpu" else torch.float32
        stacked = stack_scalars([values[name] for name in sorted(values)], self.device, dtype)
        means = (self._collectives.sum(stacked) / self.world_size).tolist()
        by_name = dict(zip(sorted(values), means, strict=True))
        return {name: by_name[name] for name in values}

    def full_gradients(self) -> dict[str, Tensor]:
        """Return averaged, unclipped gradients by parameter name, on every rank. A collective."""
        from deepspeed.utils import safe_get_full_grad

        if self._owns_boundary:
            self._engine.optimizer.finalize_gradient_accumulation_boundary()
        gradients = {}
        for name, parameter in self._module.named_parameters():
            if parameter.requires_grad:
                gradient = safe_get_full_grad(parameter)
                shape = getattr(parameter, "ds_shape", parameter.shape)
                gradients[name] = torch.zeros(shape) if gradient is None else gradient.float().cpu().clone()
        return gradients

    def full_parameters(self) -> dict[str, Tensor]:
        """Return fp32 values by parameter name on rank 0; nothing on the others. A collective."""
        from deepspeed.utils import safe_get_full_fp32_param

        values = {}
        for name, parameter in self._module.named_parameters():
            value = safe_get_full_fp32_param(parameter) if self.stage > 0 and parameter.requires_grad else None
            value = whole_value(parameter) if value is None else value
            if self.rank == 0:
                values[name] = value.detach().float().cpu().clone()
        return values

    def evaluate(self, probe: Probe) -> Outputs:
        """Return `probe(module)`, inside the engine's own forward, without dropout and gradients. A collective."""
        with evaluation_mode(self._engine), torch.no_grad():
            answered: Losses = self._engine(ProbeRequest(probe=probe))
        return answered.metrics

    def save(self, folder: Path, client_state: Mapping[str, Any]) -> None:
        """Write this rank's share of weights, moments and averages."""
        self._state.save(folder, client_state)

    def load(self, folder: Path) -> dict[str, Any]:
        """Restore parameters, moments, averages and client state bit by bit, whatever ranks and engine wrote them.

        A collective.

        Raises:
            CheckpointError: on every rank, if it does not fit the module or cannot be read.
        """
        # All must have found their shares before the first collective: one that fails later leaves the others in it.
        states = on_every_rank(self, lambda: self._state.load(folder), "load its share of a checkpoint")
        self._state.refresh()
        return states[self.rank]
