"""AdamW as the published runs had it (transformers' own of 2021), and what every AdamW keeps of a tensor.

    torch      p ← p - lr · wd · p, then  p ← p - lr / (1 - β1ᵗ) · m / (√v / √(1 - β2ᵗ) + eps)
    published  p ← p - lr · √(1 - β2ᵗ) / (1 - β1ᵗ) · m / (√v + eps) =: p - u, then  p ← p - lr · wd · p

With k = 1 - lr · wd the published p is k · (p - u) = k · p - k · u. Torch's rule makes the same of other arguments:

    lr' = lr · k,  wd' = wd / k        as  1 - lr' · wd' = 1 - lr · wd = k,  and lr' puts the factor k before u;
    eps' = eps / √(1 - β2ᵗ)            as  √v / √(1 - β2ᵗ) + eps' = (√v + eps) / √(1 - β2ᵗ).

So the published rule runs in torch's fused kernel, one pass over a group's tensors, and differs from the slow twin (a
pass for each operation) by rounding only.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import sqrt
from typing import Any

import torch
from torch import Tensor

MOMENTS = ("exp_avg", "exp_avg_sq")
"""What AdamW, torch's, DeepSpeed's and the published one, keeps of every value."""


class PublishedAdamW(torch.optim.Optimizer):
    """Adam with decay after the update and eps before the bias correction.

    A parameter without gradient (None) is left alone; one with a gradient of zeros is moved by its momentum and
    decayed. lr · weight_decay must be below 1.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        is_fused: bool = True,
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})
        self._update = fused_update if is_fused else update_reference

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            by_count: dict[int, list[Tensor]] = {}  # of one count, unless some had no gradient before
            for parameter in group["params"]:
                if parameter.grad is not None:
                    state = adamw_state(self, parameter)
                    state["step"] += 1  # on the host: reading it does not wait for the device
                    by_count.setdefault(int(state["step"]), []).append(parameter)
            for count, parameters in by_count.items():
                gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
                means, squares = ([self.state[one][key] for one in parameters] for key in MOMENTS)
                self._update(group, count, parameters, gradients, means, squares)


def fused_update(
    group: dict[str, Any],
    count: int,
    parameters: list[Tensor],
    gradients: list[Tensor],
    means: list[Tensor],
    squares: list[Tensor],
) -> None:
    """Update moments and parameters, the `count`-th time, in one kernel."""
    (beta1, beta2), rate, decay = group["betas"], group["lr"], group["weight_decay"]
    kept = 1.0 - rate * decay
    steps = [torch.full((), float(count), device=parameters[0].device)] * len(parameters)  # the kernel reads them
    torch._fused_adamw_(  # torch.optim.AdamW calls it so; with arguments of its own for each step there is no other way
        parameters,
        gradients,
        means,
        squares,
        [],
        steps,
        lr=rate * kept,
        beta1=beta1,
        beta2=beta2,
        weight_decay=decay / kept,
        eps=group["eps"] / sqrt(1.0 - beta2**count),
        amsgrad=False,
        maximize=False,
    )


def update_reference(
    group: dict[str, Any],
    count: int,
    parameters: list[Tensor],
    gradients: list[Tensor],
    means: list[Tensor],
    squares: list[Tensor],
) -> None:
    """The slow twin of `fused_update`: the published formula, operation by operation."""
    (beta1, beta2), rate = group["betas"], group["lr"]
    torch._foreach_lerp_(means, gradients, 1.0 - beta1)
    torch._foreach_mul_(squares, beta2)
    torch._foreach_addcmul_(squares, gradients, gradients, 1.0 - beta2)
    divisors = torch._foreach_sqrt(squares)
    torch._foreach_add_(divisors, group["eps"])
    size = rate * sqrt(1.0 - beta2**count) / (1.0 - beta1**count)
    torch._foreach_addcdiv_(parameters, means, divisors, -size)
    if group["weight_decay"] > 0:
        torch._foreach_mul_(parameters, 1.0 - rate * group["weight_decay"])


def library_adamw(base: Any, groups: list[dict[str, Any]], **settings: Any) -> torch.optim.Optimizer:
    """Make apex's or DeepSpeed's FusedAdam, with a count of updates for each tensor as torch's has.

    apex counts in the group, DeepSpeed in the last of its tensors only. So neither could be saved by parameter, and
    apex would count once for each part of a group that ZeRO-3 updates by itself.
    """

    class Counted(base):  # type: ignore[misc]
        """The library's, between a count that is handed in and one that is written down."""

        counts_in_ints = True

        def step(self, closure: None = None) -> None:
            """Update every parameter; those of a group have seen equally many updates."""
            found = []
            for group in self.param_groups:
                states = [adamw_state(self, one) for one in group["params"] if one.grad is not None]
                if states:
                    group["step"] = states[-1]["step"]
                    found.append((states, group["step"] + 1))
            super().step()
            for states, count in found:
                for state in states:
                    state["step"] = count

    optimizer: torch.optim.Optimizer = Counted(groups, adam_w_mode=True, **settings)
    return optimizer


def adamw_state(optimizer: torch.optim.Optimizer, values: Tensor) -> dict[str, Any]:
    """Return what an AdamW (torch's, the published one, DeepSpeed's or apex's) keeps of one of its tensors.

    It is made here as its first update would if there is nothing yet.
    """
    state: dict[str, Any] = optimizer.state[values]
    if not state:
        beside = values.device if optimizer.defaults.get("fused") else None  # where torch's fused kernel wants it
        counts_in_ints = type(optimizer).__name__ == "DeepSpeedCPUAdam" or hasattr(optimizer, "counts_in_ints")
        state["step"] = 0 if counts_in_ints else torch.zeros((), device=beside)
        for key in MOMENTS:
            state[key] = torch.zeros_like(values, memory_format=torch.preserve_format)
    return state
