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
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from cclm.distributed.collectives import Collectives
from cclm.engine.fragments import WEIGHTS, Fragment
from cclm.engine.optimizer import adamw_state
from cclm.engine.rank_state import RankState


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Where this rank's part of one trainable parameter lies."""

    name: str
    shape: tuple[int, ...]
    start: int
    flat: Tensor
    """One of the tensors that the optimizer updates; this part is a slice of it."""
    offset: int
    size: int


class ShardedState(RankState):
    """This rank's part of an initialised DeepSpeed engine's state.

    Args:
        engine: DeepSpeed's.
        module: the training module inside it, whose names count.
        stage: of ZeRO.
        ranks: this process's place.
    """

    def __init__(self, engine: Any, module: nn.Module, stage: int, ranks: Collectives) -> None:
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        super().__init__(module, ranks)
        self.is_writer, self.writes_frozen = stage > 0 or ranks.rank == 0, stage == 3 or ranks.rank == 0
        self.engine, self._stage = engine, stage
        self._optimizer = engine.optimizer.optimizer if stage > 0 else engine.optimizer
        self._counts_in_ints = isinstance(self._optimizer, DeepSpeedCPUAdam)
        self._shards = [
            shard
            for name, parameter in module.named_parameters()
            if parameter.requires_grad and (shard := self._shard(name, parameter)) is not None
        ]

    def fragments(self, kind: str) -> list[Fragment]:
        """Return this rank's parts of the trainable parameters: their fp32 values ("weights"), or a moment."""
        found = []
        for shard in self._shards:
            values = shard.flat.detach() if kind == WEIGHTS else self._state(shard)[kind]
            values = values.view(-1)[shard.offset : shard.offset + shard.size]
            found.append(Fragment(name=shard.name, shape=shard.shape, start=shard.start, values=values))
        return found

    def frozen(self) -> list[Fragment]:
        """Return this rank's parts of the parameters that no update moves, which have no fp32 master values."""
        found = []
        parameter: Any  # DeepSpeed gives it attributes
        for name, parameter in self.module.named_parameters():
            if parameter.requires_grad:
                continue
            shape, start, values = tuple(parameter.shape), 0, parameter.detach().view(-1)
            if self._stage == 3:
                shape, start = tuple(parameter.ds_shape), self.ranks.rank * parameter.ds_tensor.ds_numel
                values = parameter.ds_tensor[: max(0, math.prod(shape) - start)]
            if values.numel():
                found.append(Fragment(name=name, shape=shape, start=start, values=values))
        return found

    def optimizer_states(self) -> list[dict[str, Any]]:
        """Return what AdamW keeps of each of its flat tensors."""
        return [self._state(shard) for shard in {id(shard.flat): shard for shard in self._shards}.values()]

    def refresh(self) -> None:
        """Bring what the ranks compute with in line with the fp32 values. A collective."""
        zero = self.engine.optimizer
        if self._stage == 3:
            zero.checkpoint_event_prologue()  # cuts the parameters that are kept whole, too
            zero.load_state_dict({self.ranks.rank: zero.state_dict()}, load_optimizer_states=False)
            zero.checkpoint_event_epilogue()
        elif self._stage > 0:
            zero.update_lp_params()

    def _state(self, shard: Shard) -> dict[str, Any]:
        return adamw_state(self._optimizer, shard.flat, counts_in_ints=self._counts_in_ints)

    def _shard(self, name: str, parameter: Any) -> Shard | None:
        """This rank's part of a parameter, or None if it holds nothing of it."""
        zero, shape = self.engine.optimizer, tuple(getattr(parameter, "ds_shape", parameter.shape))
        if self._stage == 3:
            group, offset, size = zero.grad_position[zero.get_param_id(parameter)]
            flat, start = zero.fp32_partitioned_groups_flat[group], self.ranks.rank * parameter.ds_tensor.ds_numel
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
