"""The learned contrastive temperature, in two forms: a plain scalar, clamped (as published), or the log of a scale.

    clamped: value is the temperature                log: value is log(1 / temperature), as in CLIP and SigLIP

A step of the optimizer changes the plain scalar by an amount and the logarithm by a factor. Both keep their bounds.
"""

from __future__ import annotations

from math import log
from typing import Any

import torch
from torch import Tensor, nn

try:  # noqa: SIM105  # annotations only: an exported checkpoint loads without it, and HF skips imports in a try
    from jaxtyping import Float
except ImportError:
    pass


class _Clamp(torch.autograd.Function):
    """Clamp whose gradient passes unless it would push the value further outside.

    The published code clamps the parameter in place before each forward, so a value at its bound can always come back;
    autograd's own clamp would hold a value that overshot the bound there for ever.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, lowest: float, highest: float) -> Tensor:
        """Clamp."""
        ctx.save_for_backward(value)
        ctx.bounds = (lowest, highest)
        return value.clamp(lowest, highest)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        """A descent step moves against the gradient: below the bound only a negative one leads back in."""
        (value,) = ctx.saved_tensors
        lowest, highest = ctx.bounds
        outwards = ((value < lowest) & (grad > 0)) | ((value > highest) & (grad < 0))
        return grad.masked_fill(outwards, 0.0), None, None


class Temperature(nn.Module):
    """One number by which similarities are divided; shape (1,), because DeepSpeed cannot broadcast 0-dim parameters.

    `start_value` is what the parameter starts from.
    """

    def __init__(self, start: float, lowest: float, highest: float) -> None:
        super().__init__()
        self.start_value, self.lowest, self.highest = start, lowest, highest
        self.value = nn.Parameter(torch.full((1,), self.start_value))

    def forward(self) -> Float[Tensor, " 1"]:
        """The temperature inside its bounds."""
        clamped: Tensor = _Clamp.apply(self.value, self.lowest, self.highest)  # type: ignore[no-untyped-call]
        return clamped


class LogTemperature(Temperature):
    """The same number, learned as the logarithm of the scale 1 / temperature that similarities are multiplied by."""

    def __init__(self, start: float, lowest: float, highest: float) -> None:
        super().__init__(start, lowest, highest)
        self.start_value = -log(start)
        self.value = nn.Parameter(torch.full((1,), self.start_value))

    def forward(self) -> Float[Tensor, " 1"]:
        """The temperature inside its bounds."""
        scale: Tensor = _Clamp.apply(self.value, -log(self.highest), -log(self.lowest))  # type: ignore[no-untyped-call]
        return (-scale).exp()


TEMPERATURES = {"clamped": Temperature, "log": LogTemperature}
"""`temperature_form` → its module."""
