"""A network small enough to build in milliseconds, and inputs of uneven lengths."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cclm.model.configuration_cclm import CCLMConfig
from cclm.model.modeling_cclm import CCLMModel

TINY: dict[str, Any] = {
    "width": 16,
    "projection_width": 8,
    "matching_width": 12,
    "vision": {"image_size": 8, "stem_channels": [4, 8], "stem_groups": 2, "num_heads": 2, "feedforward_width": 24},
    "text": {"vocab_size": 50, "max_positions": 12, "num_heads": 2, "feedforward_width": 24},
    "fusion": {"num_heads": 2, "feedforward_width": 24},
}
LENGTHS = (5, 1, 9, 5, 2)


def tiny_config(**changes: Any) -> CCLMConfig:
    """`TINY` with changes; the blocks vision, text, fusion are merged."""
    blocks = {name: {**TINY[name], **changes.pop(name, {})} for name in ("vision", "text", "fusion")}
    return CCLMConfig(**{**TINY, **blocks, **changes})


def tiny_model(seed: int = 0, **changes: Any) -> CCLMModel:
    """A model with seeded weights whose biases and norms are not trivial, in evaluation mode."""
    torch.manual_seed(seed)
    model = CCLMModel(tiny_config(**changes))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1 and parameter is not model.temperature.value:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def tiny_texts(lengths: tuple[int, ...] = LENGTHS, columns: int | None = None) -> tuple[Tensor, Tensor]:
    """Ids and mask, padded to the longest text (or to `columns`)."""
    length_B1 = torch.tensor(lengths)[:, None]
    mask_BL = torch.arange(columns or max(lengths)) < length_B1
    ids_BL = torch.randint(2, 50, mask_BL.shape, generator=torch.Generator().manual_seed(1))
    return ids_BL.masked_fill(~mask_BL, 1), mask_BL


def tiny_images(batch: int = 5) -> Tensor:
    """Noise."""
    return torch.randn(batch, 3, 8, 8, generator=torch.Generator().manual_seed(2))
