"""DeepSpeed, ZeRO stages 0 to 3, behind the Engine protocol. Only this folder imports deepspeed.

construction.py  models and engines are made         state_shards.py  a rank's share of the training state
quirks.py        what DeepSpeed gets wrong, and what we do
skipping.py      updates that are skipped
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cclm.distributed.agreement import on_every_rank
from cclm.distributed.collectives import Collectives
from cclm.distributed.topology import Topology
from cclm.engine.deepspeed import quirks
from cclm.engine.deepspeed.construction import choose_kernel, initialise
from cclm.engine.deepspeed.skipping import update_or_skip
from cclm.engine.deepspeed.state_shards import refresh, shards_of
from cclm.engine.ds_config import offloads_optimizer, zero_stage
from cclm.engine.module_order import ModuleOrder
from cclm.engine.options import OptimizerConfig
from cclm.engine.parts import check_reaches_trained
from cclm.engine.protocol import BatchType, Engine, Updated
from cclm.engine.rank_state import RankState


class DeepSpeedEngine(Engine[BatchType]):
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
        kernel: str = "auto",
    ) -> None:
        """Shard `module` (built alike on every rank, and touched only inside its forward) and its AdamW state.

        `ds_config` is resolved (`resolve_ds_config`), `collectives` are over the same ranks, `seed` is for dropout,
        `kernel` is the optimizer's (`cclm.ops.choice`).
        """
        quirks.check_parameters_have_dimensions(module)
        enabled = [name for name in ("bf16", "fp16") if ds_config.get(name, {}).get("enabled")]
        precision = enabled[0] if enabled else "fp32"
        super().__init__(
            module, optimizer, collectives=collectives, device=topology.device, precision=precision,
            accumulation_steps=int(ds_config["gradient_accumulation_steps"]), seed=seed,
        )  # fmt: skip
        self.stage = zero_stage(ds_config)
        self.description = f"DeepSpeed, ZeRO stage {self.stage}, {self.world_size} ranks, {self.precision}"
        self.owns_boundary = quirks.owns_boundary(ds_config)
        self.kernel = choose_kernel(kernel, optimizer, ds_config, topology)
        self.runner: Any = initialise(self.door, optimizer, ds_config, topology, self.kernel.chosen)
        self.optimizer = self.runner.optimizer
        if self.stage == 3:
            self.order = ModuleOrder(module)
            self.order.watch(self.optimizer.parameter_offload)
        shards = shards_of(self.optimizer, module, self.stage, self.rank)
        adamw = self.optimizer.optimizer if self.stage > 0 else self.optimizer
        beside = torch.device("cpu") if offloads_optimizer(ds_config) else self.device
        self.state = RankState(
            module, collectives, adamw, shards,
            ema_decay=optimizer.ema_decay, device=beside, stage=self.stage, engine=self.runner,
        )  # fmt: skip

    def _backward(self, total: Tensor) -> None:
        """Back-propagate; the last of an update's backward calls averages gradients over the ranks."""
        check_reaches_trained(total)
        is_first = self._num_backwards == 0
        if is_first:
            quirks.forget_gradients(self.optimizer, self.stage)
        self.runner.backward(total)
        if is_first:
            quirks.clear_stale_gradients(self.optimizer, self.stage)
        if self._num_backwards + 1 < self._accumulation_steps and not self.owns_boundary:
            self.runner.step()  # counts the micro-step; the update comes at the boundary

    def _update(self, max_norm: float) -> Updated:
        return update_or_skip(self.runner, self.module, self.stage, max_norm)

    def load(self, folder: Path) -> dict[str, Any]:
        """Restore bit by bit what any engine saved, on any number of ranks; see `Engine.load`."""
        # All must have found their shares before the first collective: one that fails later leaves the others in it.
        states = on_every_rank(self.collectives, lambda: self.state.load(folder), "load its share of a checkpoint")
        refresh(self.optimizer, self.stage, self.rank)
        return states[self.rank]
