"""What one rank of DeepSpeed holds of the training state, by the names of the training module.

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
from typing import Any

from torch import nn

from cclm.engine.rank_state import Shard


def shards_of(zero: Any, module: nn.Module, stage: int, rank: int) -> list[Shard]:
    """Return this rank's parts of the module's trainable parameters; `zero` is the optimizer of DeepSpeed's engine."""
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
