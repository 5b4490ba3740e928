"""The AdamW of the published runs: transformers' own of 2021, which differs from torch's in two places.

    torch      p ← p - lr · wd · p, then  p ← p - lr / (1 - β1ᵗ) · m / (√(v / (1 - β2ᵗ)) + eps)
    published  p ← p - lr · √(1 - β2ᵗ) / (1 - β1ᵗ) · m / (√v + eps), then  p ← p - lr · wd · p

Both are close; a comparison with published numbers needs the second. It has no fused kernel, but updates all tensors of
a group at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import sqrt
from typing import Any

import torch
from torch import Tensor

MOMENTS = ("exp_avg", "exp_avg_sq")
"""What AdamW, torch's, DeepSpeed's and the published one, keeps of every value."""


class PublishedAdamW(torch.optim.Optimizer):
    """Adam with decay after the update and eps before the bias correction.

    A parameter without gradient (None) is left alone; one with a gradient of zeros is moved by its momentum and
    decayed.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._update(group)
        return loss

    def _update(self, group: dict[str, Any]) -> None:
        """One group."""
        parameters: list[Tensor] = [parameter for parameter in group["params"] if parameter.grad is not None]
        if not parameters:
            return
        states = [adamw_state(self, parameter) for parameter in parameters]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        means = [state["exp_avg"] for state in states]
        squares = [state["exp_avg_sq"] for state in states]
        (beta1, beta2), rate = group["betas"], group["lr"]
        torch._foreach_lerp_(means, gradients, 1.0 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, 1.0 - beta2)
        divisors = torch._foreach_sqrt(squares)
        torch._foreach_add_(divisors, group["eps"])
        sizes = []
        for state in states:
            state["step"] += 1
            count = int(state["step"])
            sizes.append(-rate * sqrt(1.0 - beta2**count) / (1.0 - beta1**count))
        torch._foreach_addcdiv_(parameters, means, divisors, sizes)
        if group["weight_decay"] > 0:
            torch._foreach_mul_(parameters, 1.0 - rate * group["weight_decay"])


def adamw_state(optimizer: torch.optim.Optimizer, values: Tensor, *, counts_in_ints: bool = False) -> dict[str, Any]:
    """Return what an AdamW keeps of one of its tensors, made here as its first update would if it has nothing yet.

    Args:
        optimizer: torch's AdamW, the published one, or DeepSpeed's for the CPU.
        values: one of its parameters.
        counts_in_ints: DeepSpeed's counts its updates so, the others in tensors.
    """
    state: dict[str, Any] = optimizer.state[values]
    if not state:
        beside = values.device if optimizer.defaults.get("fused") else None  # where torch's fused kernel wants it
        state["step"] = 0 if counts_in_ints else torch.zeros((), device=beside)
        for key in MOMENTS:
            state[key] = torch.zeros_like(values, memory_format=torch.preserve_format)
    return state
