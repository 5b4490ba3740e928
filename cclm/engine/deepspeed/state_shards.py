"""What one rank of DeepSpeed holds of the training state, as fragments by the names of the training module.

| ZeRO stage | fp32 master values and moments | this rank's part of a parameter |
|---|---|---|
| 0 | the parameters themselves | all of it, on every rank; rank 0 saves it |
| 1, 2 | all of a group in a row, one piece of the row a rank | the stretch that lies in its piece; often none |
| 3 | a rank's pieces of its group's parameters in a row | an equal piece of each; the last ranks' end in padding |

Loading copies values into the optimizer's own tensors; DeepSpeed then brings what the ranks compute with in line with
them. Its own checkpoints would be pickles, tied to the number of ranks, and are not used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from cclm.engine.adamw import adamw_state
from cclm.engine.fragments import WEIGHTS, Fragment

COUNTERS = ("global_steps", "global_samples", "skipped_steps")
"""DeepSpeed's own, which its monitors and profilers read."""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Where this rank's part of one trainable parameter lies."""

    name: str
    shape: tuple[int, ...]
    start: int
    """First element of the flattened parameter that is here."""
    flat: Tensor
    """One of the tensors that the optimizer updates."""
    offset: int
    """Of this part in `flat`, flattened."""
    size: int


class StateShards:
    """This rank's part of an initialised DeepSpeed engine's state.

    Args:
        engine: DeepSpeed's.
        module: the training module inside it, whose names count.
        stage: of ZeRO.
        rank: this process's.
    """

    def __init__(self, engine: Any, module: nn.Module, stage: int, rank: int) -> None:
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        self._engine, self._module, self._stage, self._rank = engine, module, stage, rank
        self._optimizer = engine.optimizer.optimizer if stage > 0 else engine.optimizer
        self._counts_in_ints = isinstance(self._optimizer, DeepSpeedCPUAdam)
        self.shards = [
            shard
            for name, parameter in module.named_parameters()
            if parameter.requires_grad and (shard := self._shard(name, parameter)) is not None
        ]

    def fragments(self, kind: str) -> list[Fragment]:
        """Return this rank's parts of the trainable parameters: their fp32 values ("weights"), or a moment."""
        found = []
        for shard in self.shards:
            values = shard.flat.detach() if kind == WEIGHTS else self._state(shard)[kind]
            values = values.view(-1)[shard.offset : shard.offset + shard.size]
            found.append(Fragment(name=shard.name, shape=shard.shape, start=shard.start, values=values))
        return found

    def frozen(self) -> list[Fragment]:
        """Return this rank's parts of the parameters that no update moves, which have no fp32 master values."""
        found = []
        parameter: Any  # DeepSpeed gives it attributes
        for name, parameter in self._module.named_parameters():
            if parameter.requires_grad:
                continue
            shape, start, values = tuple(parameter.shape), 0, parameter.detach().view(-1)
            if self._stage == 3:
                shape, start = tuple(parameter.ds_shape), self._rank * parameter.ds_tensor.ds_numel
                values = parameter.ds_tensor[: max(0, math.prod(shape) - start)]
            if values.numel():
                found.append(Fragment(name=name, shape=shape, start=start, values=values))
        return found

    @property
    def updates(self) -> int:
        """How many updates the moments have seen; all of them equally many."""
        return int(self._state(self.shards[0])["step"]) if self.shards else 0

    def set_updates(self, updates: int) -> None:
        """Make the moments ones that have seen so many updates."""
        for shard in self.shards:
            state = self._state(shard)
            if self._counts_in_ints:
                state["step"] = updates
            else:
                state["step"].fill_(updates)

    def counters(self) -> dict[str, int]:
        """Return DeepSpeed's counters."""
        return {name: int(getattr(self._engine, name)) for name in COUNTERS}

    def set_counters(self, counters: Mapping[str, int]) -> None:
        """Set DeepSpeed's counters; a checkpoint of the plain engine has none."""
        for name, count in counters.items():
            setattr(self._engine, name, count)

    def refresh(self) -> None:
        """Bring what the ranks compute with in line with the fp32 values. A collective."""
        zero = self._engine.optimizer
        if self._stage == 3:
            zero.checkpoint_event_prologue()  # cuts the parameters that are kept whole, too
            zero.load_state_dict({self._rank: zero.state_dict()}, load_optimizer_states=False)
            zero.checkpoint_event_epilogue()
        elif self._stage > 0:
            zero.update_lp_params()

    def _state(self, shard: Shard) -> dict[str, Any]:
        return adamw_state(self._optimizer, shard.flat, counts_in_ints=self._counts_in_ints)

    def _shard(self, name: str, parameter: Any) -> Shard | None:
        """This rank's part of a parameter, or None if it holds nothing of it."""
        zero, shape = self._engine.optimizer, tuple(getattr(parameter, "ds_shape", parameter.shape))
        if self._stage == 3:
            group, offset, size = zero.grad_position[zero.get_param_id(parameter)]
            flat, start = zero.fp32_partitioned_groups_flat[group], self._rank * parameter.ds_tensor.ds_numel
            size = max(0, min(size, math.prod(shape) - start))  # without padding
        elif self._stage > 0:
            place = parameter._hp_mapping
            if place is None:
                return None
            is_bf16_optimizer = hasattr(zero, "fp32_groups_flat_partition")
            groups = zero.fp32_groups_flat_partition if is_bf16_optimizer else zero.single_partition_of_fp32_groups
            flat, start = groups[place.param_group_index], place.lp_fragment_address.start
            offset, size = place.hp_fragment_address.start, place.hp_fragment_address.numel
        else:
            flat, start, offset, size = parameter, 0, 0, parameter.numel()
        if size == 0:
            return None
        return Shard(name=name, shape=shape, start=start, flat=flat, offset=offset, size=size)
