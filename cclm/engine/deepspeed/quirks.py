"""What DeepSpeed does otherwise than one would think (seen in 0.19.8), what is done here about it, and the test.

1.  *Gradients of earlier updates are used again.* ZeRO-3 overwrites a parameter's gradient in the first backward of an
    update that reaches it, and never clears the others. With the optimizer offloaded, stages 1 and 2 too never clear
    what goes to the CPU. → `forget_gradients`, `clear_stale_gradients`
    (tests/parity/test_engine.py::test_gradients_of_joint_image_only_and_text_only_steps, ::test_offload)
2.  With the optimizer offloaded, stages 2 and 3 hand over only the gradients that the *last* backward of an update
    reaches, unless the caller says when an update ends (`managed_gradient_accumulation: false`). → `owns_boundary`.
    That alone does not clear anything, it is refused at stage 1 with `overlap_comm`, and at stage 0 it leaves no moment
    to take a norm in; so it is on only where it is needed. (::test_offload)
3.  Parameters of shape () crash its broadcast: "self.dim() cannot be 0 to view Float as Byte".
    → `check_parameters_have_dimensions` (tests/ranks/test_deepspeed_engine.py)
4.  Its hooks find tensors in what a module returns if that is a tuple, list or dict, not in dataclasses: the backward
    pass of a module that returns one finds its parameters gone. → `Losses` is a tuple
    (tests/ranks/test_deepspeed_engine.py::test_a_training_module_may_have_parameters_of_its_own)
5.  Stage 0 tells no gradient norm, leaves a parameter without a gradient as it is, and lets a gradient that is not
    finite into the weights; the other stages skip such an update, but say neither which gradient it was nor know a
    limit. → `skipping.update_or_skip`
    (tests/parity/test_engine.py::test_every_stage_agrees_with_plain, tests/ranks/test_skipped_updates.py)
6.  At its start it compiles an extension for collectives in shared memory (a minute; for ever, if a killed process left
    its lock), and loads torch's compiler to ask whether an optimizer is Muon. → `start_deepspeed`
    (tests/ranks/test_deepspeed_engine.py::test_nothing_is_compiled_at_the_start)
7.  `zero.Init(dtype=…)` gives bf16 parameters on a CPU, whatever the dtype. → `sharded_construction` passes none
    (tests/ranks/test_sharded_build.py)
8.  Its checkpoints are pickles, tied to the number of ranks; a rank that cannot write leaves the others in a barrier.
    → `cclm.engine.fragments` (tests/ranks/test_checkpoint.py, test_world_sizes.py)
9.  In bf16 it reduces and accumulates gradients in bf16, unless told otherwise in two places. → ds_configs/*_bf16.json
    (tests/ranks/test_bf16_gradients.py)
10. It ignores unknown keys at the top of its JSON, and keys that do nothing in a given setting.
    → `cclm.engine.ds_config` (tests/unit/engine/test_ds_config.py)
11. The parameters of a ZeRO-3 leaf module are gone in its backward pass if none of its inputs needs a gradient ("size
    of tensor a (0) must match"): a first layer that is trained behind something frozen. → `let_leaves_see_gradients`
    (tests/ranks/test_freeze.py)
12. When it doubles the loss scale of fp16, it divides the gradients of that update by the new one, which halves them;
    and it raises where the scale cannot get smaller. → `skipping.update_or_skip`, `construction.initialise`
    (tests/ranks/test_skipped_updates.py)
13. In bf16 `zero.Init` makes `torch.arange` round, too, and its engine rounds buffers: rotary positions beyond some 100
    would be wrong. → `sharded_construction`, `HFTextEncoder` (tests/ranks/test_sharded_build.py)
14. In fp32 ZeRO-3 keeps the weights twice (it compares a device with a device's name), and copies them after each
    update; in all precisions it copies the gradients of an update into a row, in which they lie already, and into
    float64 for their norm (spared on a CPU). → `spare_copies`
    (tests/ranks/test_deepspeed_engine.py::test_nothing_is_copied_that_is_there). What spoils a rank's share of the
    weights, which are gathered, spoils what is saved, too, as it does everywhere but in ZeRO-1 to 3 in half precision.
15. On CPUs every rank reduces a copy of all gradients of ZeRO-3, of which it then takes its share: so torch does over
    gloo. → `start_deepspeed`, `reduce_scatter`
    (tests/ranks/test_deepspeed_engine.py::test_a_rank_gets_the_sum_of_its_part_where_the_part_was)
16. Its first broadcasts let gloo's threads compute, with as many OpenMP threads as a rank has: more than there are
    cores, so OpenMP lets all sleep after every small piece of work from then on (a step took a third longer).
    A thread keeps the number with which it began. → `one_thread`
    (tests/ranks/test_deepspeed_engine.py::test_a_rank_has_its_threads_back)

Where another library's function has to be replaced for a while (here, and in `cclm.costs.network`), the standard
library's `unittest.mock.patch` does it: it puts the old one back, whatever is raised.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as torch_dist
from torch import Tensor, nn

from cclm.distributed.collectives import reduce_scatter
from cclm.engine.ds_config import offloads_optimizer, zero_stage
from cclm.engine.optimizer import num_dimensions, total_norm
from cclm.errors import ConfigError


def start_deepspeed(device: torch.device) -> Any:
    """Import DeepSpeed with its workarounds and let it join the ranks; return the module.

    It is told the accelerator, which it would otherwise guess aloud, and muted where it calls torch by old names.
    """
    assert torch_dist.is_initialized(), "build inside cclm.distributed.topology.process_group"
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    warnings.filterwarnings("ignore", message=r"`torch\.distributed\.\w+` is deprecated", category=FutureWarning)
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if device.type == "cpu":
        deepspeed.utils.nvtx.enable_nvtx = False  # marks for a GPU profiler, some hundred a step
        from deepspeed.runtime.comm import coalesced_collectives

        coalesced_collectives._torch_reduce_scatter_fn = (
            lambda parts, own, group=None: reduce_scatter(own, parts, group)  # in its order of arguments
        )
    # What it asks about Muon calls torch.compile, which would load for seconds; another DeepSpeed may not have it.
    with suppress(ImportError), patch.object(torch, "compile", lambda function: function):
        import deepspeed.runtime.zero.muon.original_muon
    deepspeed.init_distributed(dist_backend="nccl" if device.type == "cuda" else "gloo")
    return deepspeed


@contextmanager
def one_thread() -> Iterator[None]:
    """Let threads that begin to compute inside, those of gloo, do it alone."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def spare_copies(zero: Any, device: torch.device) -> None:
    """Of ZeRO-3: let fp32 weights be the ones that are gathered, and an update read the gradients where they lie."""
    if device.type == "cpu":
        zero.get_grad_norm_direct = partial(_norm_of_group, zero)
    if not zero.offload_optimizer:
        pairs = zip(zero.fp32_partitioned_groups_flat, zero.fp16_partitioned_groups_flat, strict=True)
        for flat, gathered in pairs:
            if gathered is not None and (flat.dtype, flat.device) == (gathered.dtype, gathered.device):
                flat.data = gathered.data
    zero.flatten = partial(_in_a_row, zero.flatten)


def _norm_of_group(zero: Any, gradients: list[Tensor], parameters: list[Any], norm_type: float = 2.0) -> Tensor:
    """Norm over the ranks of the gradients of a group, [] float64; -1 if it is not finite, as DeepSpeed says it."""
    square = total_norm(gradients).square()
    torch_dist.all_reduce(square, group=zero._get_param_partition_group(parameters[0]))
    norm = square.sqrt()
    return torch.where(norm.isfinite(), norm, -1.0)


def _in_a_row(copied: Callable[[list[Tensor]], Tensor], tensors: list[Tensor]) -> Tensor:
    """Return tensors as one; as a view if each begins where the one before ends."""
    starts = [one.storage_offset() for one in tensors]
    ends = [start + one.numel() for start, one in zip(starts, tensors, strict=True)]
    storages = {one.untyped_storage().data_ptr() for one in tensors}
    if len(storages) > 1 or starts[1:] != ends[:-1] or not all(one.is_contiguous() for one in tensors):
        return copied(tensors)
    return tensors[0].as_strided((ends[-1] - starts[0],), (1,), starts[0])


def owns_boundary(ds_config: Mapping[str, Any]) -> bool:
    """Return whether we, not DeepSpeed, say when an update's last backward was: see quirk 2."""
    return zero_stage(ds_config) >= 2 and offloads_optimizer(ds_config)


def forget_gradients(zero: Any, stage: int) -> None:
    """Clear what the ZeRO optimizer remembers of gradients elsewhere: before the first backward of each update."""
    if stage == 3:
        assert zero.micro_step_id == 0, "a step was abandoned after a backward: training cannot go on from there"
        zero._offload_boundary_param_ids.clear()  # of the parameters that this update has reached, offloaded or not
    if stage > 0 and bool(getattr(zero, "offload_optimizer" if stage == 3 else "cpu_offload", False)):
        zero.norm_for_param_grads.clear()
        for flat in zero.fp32_partitioned_groups_flat if stage == 3 else zero.single_partition_of_fp32_groups:
            flat.grad.zero_()
        for gradient in getattr(zero, "accumulated_grads_in_cpu", {}).values():
            gradient.zero_()


def clear_stale_gradients(zero: Any, stage: int) -> None:
    """Clear the gradients that the first backward of an update, just done, has not overwritten."""
    if stage == 3:
        place_of = zero._DeepSpeedZeroOptimizer_Stage3__param_id_to_grad_partition
        for param_id in place_of.keys() - zero._offload_boundary_param_ids:
            place_of[param_id].zero_()


def let_leaves_see_gradients(module: nn.Module) -> None:
    """Before its own hooks: one input of each ZeRO-3 leaf module that trains needs a gradient, or is made to."""
    from deepspeed.utils import z3_leaf_module

    def see(owner: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        floating = [one for one in inputs if isinstance(one, Tensor) and one.is_floating_point()]
        if not floating or not torch.is_grad_enabled() or any(one.requires_grad for one in floating):
            return None
        seen = floating[0].detach().requires_grad_()
        return tuple(seen if one is floating[0] else one for one in inputs)

    for owner in module.modules():
        if z3_leaf_module(owner) and any(parameter.requires_grad for parameter in owner.parameters()):
            owner.register_forward_pre_hook(see, prepend=True)


def check_parameters_have_dimensions(module: nn.Module) -> None:
    """Raise ConfigError, with their names, if there are parameters of shape ()."""
    names = [name for name, parameter in module.named_parameters() if num_dimensions(parameter) == 0]
    if names:
        raise ConfigError(
            expected="parameters with at least one dimension (DeepSpeed cannot broadcast others)",
            got=f"parameters of shape (): {', '.join(names)}",
            do="Give them the shape (1,).",
            where="training module",
        )
