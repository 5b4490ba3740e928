"""DeepSpeed, ZeRO stages 0 to 3, behind the Engine protocol. Only this folder imports deepspeed.

construction.py  models and engines are made
quirks.py        what DeepSpeed gets wrong, and what we do
skipping.py      updates that are skipped
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cclm.distributed.agreement import on_every_rank
from cclm.distributed.collectives import collectives
from cclm.distributed.topology import Topology
from cclm.engine.deepspeed import quirks
from cclm.engine.deepspeed.construction import choose_kernel, initialise
from cclm.engine.deepspeed.skipping import update_or_skip
from cclm.engine.ds_config import offloads_optimizer, zero_stage
from cclm.engine.module_order import ModuleOrder
from cclm.engine.options import OptimizerConfig
from cclm.engine.parts import check_reaches_trained
from cclm.engine.protocol import BatchType, Engine, Updated
from cclm.engine.rank_state import RankState, Shard


class DeepSpeedEngine(Engine[BatchType]):
    """This rank's share of the training state. Make it inside `cclm.distributed.topology.process_group`."""

    def __init__(
        self,
        module: nn.Module,
        optimizer: OptimizerConfig,
        *,
        ds_config: Mapping[str, Any],
        topology: Topology,
        seed: int = 0,
        kernel: str = "auto",
    ) -> None:
        """Shard `module` (built alike on every rank, and touched only inside its forward) and its AdamW state.

        `ds_config` is resolved (`resolve_ds_config`), `seed` is for dropout, `kernel` is the optimizer's
        (`cclm.ops.choice`).
        """
        quirks.check_parameters_have_dimensions(module)
        enabled = [name for name in ("bf16", "fp16") if ds_config.get(name, {}).get("enabled")]
        precision = enabled[0] if enabled else "fp32"
        super().__init__(
            module, optimizer, collectives=collectives(), device=topology.device, precision=precision,
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
            module, self.collectives, adamw, shards,
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


def shards_of(zero: Any, module: nn.Module, stage: int, rank: int) -> list[Shard]:
    """Return this rank's parts of the module's trainable parameters; `zero` is the optimizer of DeepSpeed's engine.

    | ZeRO stage | fp32 master values and moments | this rank's part of a parameter |
    |---|---|---|
    | 0 | the parameters themselves | all of it, on every rank; rank 0 saves it |
    | 1, 2 | all of a group in a row, one piece of the row a rank | the stretch that lies in its piece; often none |
    | 3 | a rank's pieces of its group's parameters in a row | an equal piece of each; the last ranks' end in padding |
    """
    found = []
    parameter: Any  # DeepSpeed gives it attributes
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        shape = tuple(getattr(parameter, "ds_shape", parameter.shape))
        flat, start, offset, size = parameter, 0, 0, parameter.numel()
        if stage == 3:
            group, offset, size = zero.grad_position[zero.get_param_id(parameter)]
            flat, start = zero.fp32_partitioned_groups_flat[group], rank * parameter.ds_tensor.ds_numel
            size = max(0, min(size, math.prod(shape) - start))  # without padding
        elif stage > 0:
            place = parameter._hp_mapping
            if place is None:
                continue
            is_bf16_optimizer = hasattr(zero, "fp32_groups_flat_partition")
            groups = zero.fp32_groups_flat_partition if is_bf16_optimizer else zero.single_partition_of_fp32_groups
            flat, start = groups[place.param_group_index], place.lp_fragment_address.start
            offset, size = place.hp_fragment_address.start, place.hp_fragment_address.numel
        if size:
            found.append(Shard(name=name, shape=shape, start=start, flat=flat, offset=offset, size=size))
    return found


def refresh(zero: Any, stage: int, rank: int) -> None:
    """Bring what the ranks compute with in line with the fp32 values. A collective."""
    if stage == 3:
        zero.checkpoint_event_prologue()  # cuts the parameters that are kept whole, too
        zero.load_state_dict({rank: zero.state_dict()}, load_optimizer_states=False)
        zero.checkpoint_event_epilogue()
    elif stage > 0:
        zero.update_lp_params()
