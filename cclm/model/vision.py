"""The image encoder: a convolutional stem, then transformer layers over its grid.

    image (B, 3, H, W) → stem, each stage halves the side → tokens (B, P, D) + positions → layers → (B, 1 + P, D)

Index 0 of the output is the mean of the P tokens, which stands for the whole image, as in CCLM.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from .layers import LayerStack
from .options import VisionOptions
from .packing import PaddedLayout
from .patch_dropping import take_patches
from .shapes import Float, Int


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of each pixel."""

    def forward(self, image_BCHW: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Same shape; both permutes are free for channels-last memory."""
        return super().forward(image_BCHW.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ChannelAffine(nn.Module):
    """Scale and shift of each channel; they start as what normalises a first batch, and are ordinary weights then."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.calibrating = False
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, image_BCHW: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Same shape."""
        if self.calibrating:
            deviation_C = image_BCHW.std((0, 2, 3)) + 1e-5
            self.weight.data = 1.0 / deviation_C
            self.bias.data = -image_BCHW.mean((0, 2, 3)) / deviation_C
        return torch.addcmul(self.bias[:, None, None], image_BCHW, self.weight[:, None, None])


def stem_norm(options: VisionOptions, channels: int) -> nn.Module:
    """The norm that the options name; none of them looks at other samples of the batch."""
    if options.stem_norm == "group":
        return nn.GroupNorm(options.stem_groups, channels, options.norm_eps)
    return ChannelAffine(channels) if options.stem_norm == "affine" else ChannelNorm(channels, options.norm_eps)


class ConvNorm(nn.Module):
    """Convolution without bias, then a norm that knows no batch."""

    def __init__(self, options: VisionOptions, channels_in: int, channels_out: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels_in, channels_out, kernel, stride, padding=1, bias=False)
        self.norm = stem_norm(options, channels_out)

    def forward(self, image_BCHW: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k i j"]:
        """(B, C, H, W) → (B, C', H / stride, W / stride)."""
        normed: Tensor = self.norm(self.convolution(image_BCHW))
        return normed


class StemStage(nn.Module):
    """A 3×3 convolution that halves the side, then one that keeps it; three ways to connect them."""

    def __init__(self, options: VisionOptions, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.skip = options.stem_stage == "skip"
        self.halve = ConvNorm(options, channels_in, channels_out, 3, 2)
        self.keep = ConvNorm(options, channels_out, channels_out, 3, 1)
        residual = options.stem_stage == "residual"
        self.shortcut = nn.Conv2d(channels_in, channels_out, 2, 2, bias=False) if residual else None

    def forward(self, image_BCHW: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k i j"]:
        """(B, C, H, W) → (B, C', H / 2, W / 2)."""
        halved = functional.relu(self.halve(image_BCHW))
        kept: Tensor = self.keep(halved)
        if self.shortcut is not None:
            return functional.relu(self.shortcut(image_BCHW) + kept)
        return halved + functional.relu(kept) if self.skip else functional.relu(kept)


class ConvStem(nn.Module):
    """Pixels to tokens: a 4×4 stride-2 convolution, a stage per further entry of `stem_channels`, 1×1 to the width."""

    def __init__(self, width: int, options: VisionOptions) -> None:
        super().__init__()
        channels = options.stem_channels
        self.first = ConvNorm(options, 3, channels[0], 4, 2)
        self.stages = nn.ModuleList(StemStage(options, before, after) for before, after in pairwise(channels))
        self.project = nn.Conv2d(channels[-1], width, 1)

    def forward(self, images_BCHW: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b p d"]:
        """Tokens in reading order."""
        grid = functional.relu(self.first(images_BCHW.contiguous(memory_format=torch.channels_last)))
        for stage in self.stages:
            grid = stage(grid)
        projected: Tensor = self.project(grid)
        return projected.permute(0, 2, 3, 1).flatten(1, 2)


class ConvVisionEncoder(nn.Module):
    """The "conv_vit" tower."""

    def __init__(self, width: int, options: VisionOptions) -> None:
        super().__init__()
        side = options.image_size // 2 ** len(options.stem_channels)
        self.stem = ConvStem(width, options)
        self.positions = nn.Parameter(torch.randn(side * side, width) * 0.02)
        self.stack = LayerStack(width, options)

    def forward(
        self, images_BCHW: Float[Tensor, "b 3 h w"], *, kept_BK: Int[Tensor, "b k"] | None = None
    ) -> Float[Tensor, "b n d"]:
        """Normalised pixels to 1 + P tokens; P are those that are kept, or all."""
        tokens_BPD = self.stem(images_BCHW) + self.positions
        if kept_BK is not None:
            tokens_BPD = take_patches(tokens_BPD, kept_BK)
        batch, num_tokens, width = tokens_BPD.shape
        layout = PaddedLayout(batch=batch, length=num_tokens, mask_BL=None)
        rows_TD = self.stack(layout.to_rows(tokens_BPD), layout=layout)
        tokens_BPD = rows_TD.view(batch, num_tokens, width)
        return torch.cat([tokens_BPD.mean(1, keepdim=True), tokens_BPD], 1)
