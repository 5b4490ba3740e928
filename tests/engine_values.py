"""Every parameter and gradient of an engine, whole: what the twins are compared by."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cclm.engine.plain import PlainEngine


def full_gradients(engine: Any) -> dict[str, Tensor]:
    """Return averaged, unclipped gradients by parameter name, on every rank; zeros where the step did not use one.

    Call it between `backward` and `update`. A collective.
    """
    found: dict[str, Tensor | None] = {}
    trained = [(name, value) for name, value in engine.module.named_parameters() if value.requires_grad]
    if isinstance(engine, PlainEngine):
        found = {name: value.grad for name, value in trained}
    else:
        from deepspeed.utils import safe_get_full_grad

        if engine.owns_boundary:
            engine.optimizer.finalize_gradient_accumulation_boundary()
        found = {name: safe_get_full_grad(value) for name, value in trained}
    return {
        name: torch.zeros(getattr(value, "ds_shape", value.shape)) if grad is None else grad.float().cpu().clone()
        for (name, value), grad in zip(trained, found.values(), strict=True)
    }


def full_parameters(engine: Any) -> dict[str, Tensor]:
    """Return fp32 values by parameter name on rank 0; nothing on the others. A collective."""
    if isinstance(engine, PlainEngine):
        return {name: value.detach().cpu().clone() for name, value in engine.module.named_parameters()}
    from deepspeed.utils import safe_get_full_fp32_param

    values = {}
    for name, parameter in engine.module.named_parameters():
        value = safe_get_full_fp32_param(parameter) if engine.stage > 0 and parameter.requires_grad else None
        value = whole_value(parameter) if value is None else value
        if engine.rank == 0:
            values[name] = value.detach().float().cpu().clone()
    return values


def whole_value(parameter: nn.Parameter) -> Tensor:
    """Return a copy of a parameter, made whole if this rank holds only its share. A collective, then."""
    if not hasattr(parameter, "ds_id"):
        return parameter.detach().clone()
    from deepspeed.runtime.zero import GatheredParameters

    with GatheredParameters([parameter]):
        return parameter.detach().clone()
