"""An update of DeepSpeed, or none: one rule for all ZeRO stages, as the plain engine has it.

| stage | who computes the norm, and where | who skips |
|---|---|---|
| 0 | we do: every rank has all gradients | we do: DeepSpeed would let them into the weights |
| 1 (bf16) | `BF16_Optimizer`, `get_global_norm_of_tensors` | it does |
| 1, 2 | `DeepSpeedZeroOptimizer.scaled_global_norm` | it does |
| 3 | `DeepSpeedZeroOptimizer_Stage3._get_norm_groups` | it does |

In fp16 DeepSpeed multiplies losses with a scale, which it lowers where gradients overflow: such an update is skipped
and counted as any other, and the scale is part of the state (`cclm.engine.rank_state`).

DeepSpeed skips what is not finite, all ranks alike, as the norm is global; a norm above the limit is made infinite on
the device. Which gradients are not finite is looked at in a skipped update only, before DeepSpeed clears them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from cclm.engine.optimizer import total_norm, trained_parameters
from cclm.engine.parts import not_finite
from cclm.engine.protocol import Updated


def update_or_skip(runner: Any, module: nn.Module, stage: int, max_norm: float) -> Updated:
    """Clip and update, or skip the update: its norm is not finite, or above `max_norm`. DeepSpeed counts it."""
    if stage == 0:
        return _update_whole(runner, module, max_norm)
    zero, norms, bad = runner.optimizer, list[Tensor](), list[str]()
    scaler, scales_anew = getattr(zero, "loss_scaler", None), list[Callable[[], Any]]()
    scale = float(scaler.loss_scale) if scaler is not None else 1.0  # gradients are so many times too large, in fp16

    def look(original: Callable[..., Any], *arguments: Any) -> Any:
        if zero.overflow:
            bad.extend(not_finite(module, partial(_gradient_of, zero, stage)))
        if not getattr(scaler, "dynamic", False):
            return original(*arguments)
        # One that is above the limit, and finite, is not to be blamed on the scale; a larger scale begins behind the
        # update: DeepSpeed would divide gradients by it that are multiplied with the one before.
        if not (zero.overflow and norms and bool(norms[0].isfinite())):
            scales_anew.append(partial(original, *arguments))
        return None

    with ExitStack() as stack:
        is_bf16_optimizer = hasattr(zero, "fp32_groups_flat_partition")
        stack.enter_context(_around(zero, "clear_hp_grads" if is_bf16_optimizer else "_update_scale", look))
        if max_norm < torch.inf:
            limit = partial(_limited, max_norm * scale, norms)
            if is_bf16_optimizer:
                import deepspeed.runtime.bf16_optimizer as owner

                stack.enter_context(_around(owner, "get_global_norm_of_tensors", limit))
            else:
                stack.enter_context(_around(zero, "_get_norm_groups" if stage == 3 else "scaled_global_norm", limit))
        runner.step()
    for scale_anew in scales_anew:
        scale_anew()
    norm = norms[0] / scale if norms else runner.get_global_grad_norm()
    return Updated(norm, bool(runner.was_step_applied()), bad)


def _update_whole(runner: Any, module: nn.Module, max_norm: float) -> Updated:
    """Of stage 0: the optimizer is ours, and DeepSpeed asks it whether there was an overflow, as it asks its own."""
    parameters = trained_parameters(module)
    norm = total_norm(value.grad for value in parameters if value.grad is not None)
    if bool(norm.isfinite() & (norm <= max_norm)):
        nn.utils.clip_grads_with_norm_(parameters, runner.gradient_clipping() or torch.inf, norm.float())
        runner.step()  # finds nothing left to clip
        return Updated(norm, True)
    bad, optimizer = not_finite(module, lambda parameter: parameter.grad), runner.optimizer
    optimizer.overflow = True
    try:
        with patch.object(optimizer, "step", lambda *arguments: None):
            runner.step()
    finally:
        del optimizer.overflow
    return Updated(norm, False, bad)


def _limited(
    max_norm: float, norms: list[Tensor], original: Callable[..., Any], *arguments: Any, **options: Any
) -> Any:
    """A norm, or the norms of groups, made infinite where the whole is above the limit; the host does not wait."""
    from deepspeed.runtime.utils import combine_grad_norm_groups

    found = original(*arguments, **options)
    groups = found if isinstance(found, list) else [found]
    norms.append(combine_grad_norm_groups(groups))
    limited = [torch.where(norms[-1].to(one.device) > max_norm, torch.inf, one) for one in groups]
    return limited if isinstance(found, list) else limited[0]


def _gradient_of(zero: Any, stage: int, parameter: Any) -> Tensor | None:
    if stage == 3:
        share: Tensor = zero.get_local_fp32_grad_for_param(parameter)
        return share
    place = parameter._hp_mapping
    return None if place is None else place.get_lp_grad_fragment(parameter._index_in_param_group)


def _around(owner: Any, name: str, around: Callable[..., Any]) -> AbstractContextManager[Any]:
    """Let `around(original, …)` be called in place of a function of a module, or of a method of one object."""
    return patch.object(owner, name, partial(around, getattr(owner, name)))
