"""What stands on the encoders: contrastive projections and temperature, matching head, box head, masked-LM head."""

from __future__ import annotations

from collections.abc import Callable
from math import log
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from .kernels import LayerNorm
from .shapes import Float

ResultType = TypeVar("ResultType")
HeadType = TypeVar("HeadType", bound=nn.Module)
BOXES = ("boxes", "box_head: true (CCLM-4M, X2VLM)")
"""What a box head gives, and the option of a model that has one."""


def present(head: HeadType | None, what: str, option: str = "pretraining_heads: true") -> HeadType:
    """The head, if the model has it. Raises ValueError: it was made without."""
    if head is None:
        raise ValueError(f"{what}: expected a model with {option}, got one without. Import another.")
    return head


class ProjectionHead(nn.Module):
    """Linear, then L2 normalisation: the features of the contrastive loss."""

    def __init__(self, width: int, projection_width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, projection_width)

    def forward(self, pooled_BD: Float[Tensor, "b d"]) -> Float[Tensor, "b e"]:
        """Unit vectors."""
        return functional.normalize(self.linear(pooled_BD), dim=-1)


class _Clamp(torch.autograd.Function):
    """Clamp whose gradient passes unless it would push the value further outside.

    The published code clamps the parameter in place before each forward, so a value at its bound can always come back;
    autograd's own clamp would hold a value that overshot the bound there for ever.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, lowest: float, highest: float) -> Tensor:
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
    """The number by which similarities are divided, clamped (as published).

    A parameter of shape (1,), because DeepSpeed cannot broadcast 0-dim ones. `start_value` is what it starts from.
    """

    def __init__(self, start: float, lowest: float, highest: float) -> None:
        super().__init__()
        self.start_value, self.bounds = start, (lowest, highest)
        self.value = nn.Parameter(torch.full((1,), start))

    def forward(self) -> Float[Tensor, " 1"]:
        """The temperature inside its bounds."""
        clamped: Tensor = _Clamp.apply(self.value, *self.bounds)  # type: ignore[no-untyped-call]
        return clamped


class LogTemperature(Temperature):
    """The same number, learned as the logarithm of the scale 1 / temperature (as in CLIP and SigLIP).

    A step of the optimizer changes the plain scalar by an amount and the logarithm by a factor. Both keep their bounds.
    """

    def __init__(self, start: float, lowest: float, highest: float) -> None:
        super().__init__(-log(start), -log(highest), -log(lowest))

    def forward(self) -> Float[Tensor, " 1"]:
        """The temperature inside its bounds."""
        return (-super().forward()).exp()


class SimilarityBias(nn.Module):
    """What the sigmoid contrastive loss adds to similarities (SigLIP); of shape (1,), as the temperature."""

    def __init__(self, start: float) -> None:
        super().__init__()
        self.start_value = start
        self.value = nn.Parameter(torch.full((1,), start))

    def forward(self) -> Float[Tensor, " 1"]:
        """The bias: a copy, because ZeRO-3 takes the parameter back."""
        return self.value.clone()


TEMPERATURES = {"clamped": Temperature, "log": LogTemperature}
"""`temperature_form` → its module."""


class MatchingHead(nn.Module):
    """Linear → LayerNorm → GELU → Linear to two classes; class 1 means "these two belong together".

    With another number of classes it is the head of a fine-tuned classifier.
    """

    def __init__(self, width: int, hidden_width: int, num_classes: int = 2) -> None:
        super().__init__()
        self.widen = nn.Linear(width, hidden_width)
        self.norm = LayerNorm(hidden_width)
        self.classify = nn.Linear(hidden_width, num_classes)

    def forward(self, pooled_BD: Float[Tensor, "b d"]) -> Float[Tensor, "b classes"]:
        """Logits."""
        logits_BC: Tensor = self.classify(functional.gelu(self.norm(self.widen(pooled_BD))))
        return logits_BC


class BoxHead(nn.Module):
    """Linear → LayerNorm → GELU → Linear → sigmoid: where in the image is what the text describes?"""

    def __init__(self, width: int, hidden_width: int) -> None:
        super().__init__()
        self.widen = nn.Linear(width, hidden_width)
        self.norm = LayerNorm(hidden_width)
        self.locate = nn.Linear(hidden_width, 4)

    def forward(self, pooled_BD: Float[Tensor, "b d"]) -> Float[Tensor, "b 4"]:
        """Centre x, centre y, width, height as shares of the image's sides."""
        box_B4: Tensor = self.locate(functional.gelu(self.norm(self.widen(pooled_BD)))).sigmoid()
        return box_B4


class MaskedLMTransform(nn.Module):
    """Linear → GELU → LayerNorm: from a fused state to what the decoder compares with the word embeddings."""

    def __init__(self, width: int, norm_eps: float) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.norm = LayerNorm(width, norm_eps)

    def forward(self, fused_TD: Float[Tensor, "t d"]) -> Float[Tensor, "t d"]:
        """Same shape."""
        hidden_TD: Tensor = self.norm(functional.gelu(self.linear(fused_TD)))
        return hidden_TD


class MaskedLMDecoder(nn.Module):
    """Holds the decoder's weight (usually tied to the word embeddings) and bias.

    Losses that never build the logits need the weight itself, and under ZeRO-3 it exists only inside a module's
    forward: so the loss comes in as a function and is called here.
    """

    def __init__(self, width: int, vocab_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, width))
        self.bias = nn.Parameter(torch.zeros(vocab_size))
        nn.init.normal_(self.weight, std=0.02)

    def forward(
        self, hidden_TD: Float[Tensor, "t d"], function: Callable[[Tensor, Tensor, Tensor], ResultType]
    ) -> ResultType:
        """`function(hidden_TD, weight_VD, bias_V)`; `torch.nn.functional.linear` gives the logits."""
        return function(hidden_TD, self.weight, self.bias)
