"""What stands on the encoders: contrastive projections, matching head, box head, masked-LM head."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from .kernels import LayerNorm

try:  # noqa: SIM105  # annotations only: an exported checkpoint loads without it, and HF skips imports in a try
    from jaxtyping import Float
except ImportError:
    pass

ResultType = TypeVar("ResultType")


class ProjectionHead(nn.Module):
    """Linear, then L2 normalisation: the features of the contrastive loss."""

    def __init__(self, width: int, projection_width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, projection_width)

    def forward(self, pooled_BD: Float[Tensor, "b d"]) -> Float[Tensor, "b e"]:
        """Unit vectors."""
        return functional.normalize(self.linear(pooled_BD), dim=-1)


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
