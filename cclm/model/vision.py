"""The image encoder: a convolutional stem, then transformer layers over its grid.

    image (B, 3, H, W) → stem, each stage halves the side → tokens (B, P, D) + positions → layers → (B, 1 + P, D)

Index 0 of the output is the mean of the P tokens, which stands for the whole image, as in CCLM.

Which patches of an image a training step computes in any tower (FLIP, arXiv 2212.00794) is a share, drawn by a hash of
the image's key and of the patch's number, where the images are. What the key depends on (sample, step, seed) decides
what the draw depends on; so all numbers of ranks and of micro-batches draw the same.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from .layers import LayerStack
from .options import VisionOptions
from .packing import PaddedLayout
from .shapes import Float, Int

_INCREMENT, _FIRST, _SECOND = (
    value - (1 << 64) for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)
"""Of SplitMix64 (Steele, Lea & Flood 2014), as the signed numbers that an int64 tensor holds; products wrap."""


def kept_patches(key_B: Int[Tensor, " b"], num_patches: int, share: float) -> Int[Tensor, "b k"]:
    """Draw a share of the patches of each image, at least one: ascending numbers, equally many for each."""
    number_P = torch.arange(1, num_patches + 1, device=key_B.device)
    rank_BP = mix64(mix64(key_B)[:, None] + number_P * _INCREMENT)
    kept_BK = rank_BP.topk(max(1, round(share * num_patches)), sorted=False).indices
    return kept_BK.sort().values


def mix64(words: Int[Tensor, " *b"]) -> Int[Tensor, " *b"]:
    """SplitMix64's finalizer: a permutation of the 64-bit words in which each bit depends on all."""
    words = (words ^ _shifted(words, 30)) * _FIRST
    words = (words ^ _shifted(words, 27)) * _SECOND
    return words ^ _shifted(words, 31)


def _shifted(words: Tensor, bits: int) -> Tensor:
    """To the right with zeros coming in; `>>` of signed words brings in copies of the sign."""
    return (words >> bits) & ((1 << (64 - bits)) - 1)


def take_patches(tokens_BLD: Float[Tensor, "b l d"], kept_BK: Int[Tensor, "b k"]) -> Float[Tensor, "b k d"]:
    """Take the tokens of these numbers, for each image its own."""
    return tokens_BLD.gather(1, kept_BK[:, :, None].expand(-1, -1, tokens_BLD.shape[2]))


def with_tokens_before(kept_BK: Int[Tensor, "b k"], count: int) -> Int[Tensor, "b m"]:
    """Numbers of the tokens that stay: `count` that stand before the patches, and behind them the kept patches."""
    before_BC = torch.arange(count, device=kept_BK.device).expand(kept_BK.shape[0], -1)
    return torch.cat([before_BC, kept_BK + count], 1)


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
