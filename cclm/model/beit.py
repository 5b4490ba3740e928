"""The BEiT-v2 image encoder of the CCLM-X2VLM models: a ViT with relative position biases and scaled sub-layers.

    image ─ patches ─ [class; patches] ─ blocks ─ drop the class token ─ norm ─ tokens (B, P, D), mean in front

Positions come only from each block's bias table. Queries and values have biases, keys have none.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from .kernels import LayerNorm, UsesKernels
from .layers import FeedForward, drop_path, merge_heads, split_heads, stochastic_depth
from .options import VisionOptions
from .shapes import Float, Int
from .swin import RelativePositionBias, grid_index, num_offsets
from .vision import take_patches, with_tokens_before


@cache
@torch.inference_mode(False)
def grid_index_with_class(side: int, device: torch.device) -> Int[Tensor, "tokens tokens"]:
    """`grid_index` with a class token in front, whose pairs take the last three rows of the table.

    Those are, in order: class token looks at a cell, a cell looks at the class token, class token looks at itself.
    """
    index_LL = functional.pad(grid_index(side, device), (1, 0, 1, 0))
    first = num_offsets(side)
    index_LL[0, :] = first
    index_LL[:, 0] = first + 1
    index_LL[0, 0] = first + 2
    return index_LL


class BeitAttention(UsesKernels, nn.Module):
    """Attention of all tokens of an image to each other, biased by relative position."""

    def __init__(self, width: int, num_heads: int, side: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.query_bias = BiasVector(width)
        self.value_bias = BiasVector(width)
        self.output = nn.Linear(width, width)
        self.position = RelativePositionBias(num_offsets(side) + 3, num_heads)

    def forward(
        self, tokens_BLD: Float[Tensor, "b l d"], index_BLL: Int[Tensor, " *one_or_b l l"]
    ) -> Float[Tensor, "b l d"]:
        """Same shape; `index_BLL` holds the row of the bias table for each pair of tokens."""
        query_BLD, key_BLD, value_BLD = self.query_key_value(tokens_BLD).chunk(3, -1)
        parts = (self.query_bias(query_BLD), key_BLD, self.value_bias(value_BLD))
        query, key, value = (split_heads(part.contiguous(), self.num_heads) for part in parts)
        bias = self.position(index_BLL).to(query.dtype)
        attended = self.kernels.attention(query, key, value, bias, 0.0)
        mixed_BLD: Tensor = self.output(merge_heads(attended))
        return mixed_BLD


class BiasVector(nn.Module):
    """Adds a learned vector."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, tokens_BLD: Float[Tensor, "b l d"]) -> Float[Tensor, "b l d"]:
        """Same shape."""
        return tokens_BLD + self.bias


class BeitBlock(nn.Module):
    """Attention, then feed-forward, each with norm before, a learned scale per channel after, and a residual around."""

    def __init__(self, width: int, options: VisionOptions, drop: float) -> None:
        super().__init__()
        self.drop = drop
        self.attention_norm = LayerNorm(width, options.norm_eps)
        self.attention = BeitAttention(width, options.num_heads, options.image_size // options.patch_size)
        self.attention_scale = nn.Parameter(torch.full((width,), options.layer_scale))
        self.feedforward_norm = LayerNorm(width, options.norm_eps)
        self.feedforward = FeedForward(width, options.feedforward_width)
        self.feedforward_scale = nn.Parameter(torch.full((width,), options.layer_scale))

    def forward(
        self, tokens_BLD: Float[Tensor, "b l d"], index_BLL: Int[Tensor, " *one_or_b l l"]
    ) -> Float[Tensor, "b l d"]:
        """Same shape."""
        mixed = self.attention_scale * self.attention(self.attention_norm(tokens_BLD), index_BLL)
        tokens_BLD = tokens_BLD + drop_path(mixed, self.drop, self.training)
        changed = self.feedforward_scale * self.feedforward(self.feedforward_norm(tokens_BLD))
        return tokens_BLD + drop_path(changed, self.drop, self.training)


class BeitEncoder(nn.Module):
    """The "beit" tower."""

    def __init__(self, width: int, options: VisionOptions) -> None:
        super().__init__()
        self.side = options.image_size // options.patch_size
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.patches = nn.Conv2d(3, width, options.patch_size, options.patch_size)
        drops = stochastic_depth(options.drop_path, options.num_layers)
        self.blocks = nn.ModuleList(BeitBlock(width, options, drop) for drop in drops)
        self.final_norm = LayerNorm(width, options.norm_eps)

    def forward(
        self, images_BCHW: Float[Tensor, "b 3 h w"], *, kept_BK: Int[Tensor, "b k"] | None = None
    ) -> Float[Tensor, "b n d"]:
        """Normalised pixels to 1 + P tokens; the first is the mean of the others, not the class token.

        P are the patches that are kept, or all.
        """
        patch_BPD = self.patches(images_BCHW).flatten(2).transpose(1, 2)
        index_BLL = grid_index_with_class(self.side, images_BCHW.device)[None]
        if kept_BK is not None:
            patch_BPD = take_patches(patch_BPD, kept_BK)
            kept_BL = with_tokens_before(kept_BK, 1)
            index_BLL = index_BLL[0][kept_BL[:, :, None], kept_BL[:, None, :]]
        tokens_BLD = torch.cat([self.class_token.to(patch_BPD.dtype).expand(patch_BPD.shape[0], -1, -1), patch_BPD], 1)
        for block in self.blocks:
            tokens_BLD = block(tokens_BLD, index_BLL)
        tokens_BPD = self.final_norm(tokens_BLD[:, 1:])
        return torch.cat([tokens_BPD.mean(1, keepdim=True), tokens_BPD], 1)
