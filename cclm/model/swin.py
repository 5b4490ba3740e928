"""The Swin image encoder of CCLM-3M and 4M (arXiv 2103.14030): attention inside windows, every second block shifted.

    image ─ patches ─ norm ─ [ blocks ─ merge 2 × 2 ] × stages ─ norm ─ tokens (B, P, D), mean in front

The channels double with each merge and end at the model's width. A window does not shift where it covers the whole grid
(always in the last stage of the published models).
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from .kernels import LayerNorm, UsesKernels
from .layers import FeedForward, drop_path, stochastic_depth
from .options import VisionOptions
from .shapes import Float, Int

OTHER_SIDE = -100.0
"""Added to the score of two cells that only the shift has brought into one window; published value."""


def to_windows(grid_BHWC: Float[Tensor, "b h w c"], window: int) -> Float[Tensor, "b windows cells c"]:
    """Cut a grid into windows, both in reading order."""
    batch, height, width, channels = grid_BHWC.shape
    pieces = grid_BHWC.view(batch, height // window, window, width // window, window, channels)
    return pieces.transpose(2, 3).reshape(batch, -1, window * window, channels)


def from_windows(windows_BWLC: Float[Tensor, "b windows cells c"], side: int) -> Float[Tensor, "b h w c"]:
    """The inverse, for a square grid of this side."""
    batch, _, num_cells, channels = windows_BWLC.shape
    window = round(num_cells**0.5)
    pieces = windows_BWLC.view(batch, side // window, side // window, window, window, channels)
    return pieces.transpose(2, 3).reshape(batch, side, side, channels)


@cache
@torch.inference_mode(False)
def shift_mask(side: int, window: int, device: torch.device) -> Float[Tensor, "windows cells cells"]:
    """0 for two cells of a shifted window that are near in the image, `OTHER_SIDE` where only the shift joins them."""
    shift = window // 2
    line = torch.arange(side, device=device)
    strip = (line >= side - window).long() + (line >= side - shift).long()
    area_HW = strip[:, None] * 3 + strip[None]
    area_WL = to_windows(area_HW[None, :, :, None].float(), window)[0, :, :, 0]
    return torch.where(area_WL[:, :, None] == area_WL[:, None, :], 0.0, OTHER_SIDE)


class RelativePositionBias(nn.Module):
    """Learned biases of attention scores by relative position, as Swin and BEiT have them.

    The table has one row for each offset (Δrow, Δcolumn) that two cells of a square grid can have. Which row a pair of
    cells takes is an index, computed and cached (no buffer: a checkpoint should not carry what the sizes say).
    """

    def __init__(self, num_rows: int, num_heads: int) -> None:
        super().__init__()
        self.bias_table = nn.Parameter(torch.zeros(num_rows, num_heads))

    def forward(self, index_LL: Int[Tensor, " *b l l"]) -> Float[Tensor, " *b heads l l"]:
        """What to add to the scores of each head."""
        return functional.embedding(index_LL, self.bias_table).movedim(-1, -3)


def num_offsets(side: int) -> int:
    """How many offsets two cells of a side × side grid can have."""
    return (2 * side - 1) ** 2


@cache
@torch.inference_mode(False)
def grid_index(side: int, device: torch.device) -> Int[Tensor, "cells cells"]:
    """Table row of each pair of cells of a side × side grid in reading order."""
    line = torch.arange(side, device=device)
    row_P, column_P = line.repeat_interleave(side), line.repeat(side)
    down_PP = row_P[:, None] - row_P[None] + side - 1
    right_PP = column_P[:, None] - column_P[None] + side - 1
    return down_PP * (2 * side - 1) + right_PP


class WindowAttention(UsesKernels, nn.Module):
    """Attention of the cells of one window to each other, biased by relative position."""

    def __init__(self, channels: int, num_heads: int, window: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.window = window
        self.query_key_value = nn.Linear(channels, 3 * channels)
        self.output = nn.Linear(channels, channels)
        self.position = RelativePositionBias(num_offsets(window), num_heads)

    def forward(
        self, windows_BWLC: Float[Tensor, "b w l c"], mask_WLL: Float[Tensor, "w l l"] | None
    ) -> Float[Tensor, "b w l c"]:
        """Windows in, windows out; the mask is added to the scores.

        Windows share the batch axis with the images, or with a mask the head axis: either way the bias is stored once.
        """
        batch, num_windows, num_cells, channels = windows_BWLC.shape
        parts = self.query_key_value(windows_BWLC).view(batch, num_windows, num_cells, 3, self.num_heads, -1)
        parts = parts.permute(3, 0, 1, 4, 2, 5)
        bias = self.position(grid_index(self.window, windows_BWLC.device))
        if mask_WLL is None:
            query, key, value = parts.flatten(1, 2)
        else:
            query, key, value = parts.flatten(2, 3)
            bias = (bias + mask_WLL[:, None]).flatten(0, 1)
        attended = self.kernels.attention(query, key, value, bias[None].to(query.dtype), 0.0)
        attended = attended.reshape(batch, num_windows, self.num_heads, num_cells, -1).transpose(2, 3)
        mixed_BWLC: Tensor = self.output(attended.reshape(batch, num_windows, num_cells, channels))
        return mixed_BWLC


class SwinBlock(nn.Module):
    """Window attention, then feed-forward, both with norm before and residual around."""

    def __init__(
        self,
        channels: int,
        num_heads: int,
        side: int,
        options: VisionOptions,
        *,
        feedforward_width: int,
        shifted: bool,
        drop: float,
    ) -> None:
        super().__init__()
        self.side = side
        self.window = min(options.window, side)
        self.shift = self.window // 2 if shifted and side > self.window else 0
        self.drop = drop
        self.attention_norm = LayerNorm(channels, options.norm_eps)
        self.attention = WindowAttention(channels, num_heads, self.window)
        self.feedforward_norm = LayerNorm(channels, options.norm_eps)
        self.feedforward = FeedForward(channels, feedforward_width)

    def forward(self, grid_BHWC: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        """Same shape."""
        moved = self.attention_norm(grid_BHWC)
        mask = None
        if self.shift:
            moved = moved.roll((-self.shift, -self.shift), (1, 2))
            mask = shift_mask(self.side, self.window, grid_BHWC.device)
        moved = from_windows(self.attention(to_windows(moved, self.window), mask), self.side)
        if self.shift:
            moved = moved.roll((self.shift, self.shift), (1, 2))
        grid_BHWC = grid_BHWC + drop_path(moved, self.drop, self.training)
        changed = self.feedforward(self.feedforward_norm(grid_BHWC))
        return grid_BHWC + drop_path(changed, self.drop, self.training)


class PatchMerging(nn.Module):
    """Four neighbours become one cell of twice the channels."""

    def __init__(self, channels: int, norm_eps: float) -> None:
        super().__init__()
        self.norm = LayerNorm(4 * channels, norm_eps)
        self.reduce = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, grid_BHWC: Float[Tensor, "b h w c"]) -> Float[Tensor, "b i j k"]:
        """(B, H, W, C) → (B, H / 2, W / 2, 2C); the order of the four is the published one (down, then right)."""
        four = [grid_BHWC[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        reduced: Tensor = self.reduce(self.norm(torch.cat(four, -1)))
        return reduced


class SwinStage(nn.Module):
    """Blocks on one grid, then the merge to the next one (none after the last)."""

    def __init__(self, width: int, options: VisionOptions, stage: int, drops: list[float]) -> None:
        super().__init__()
        factor = 2 ** (len(options.stage_layers) - 1 - stage)
        channels = width // factor
        self.blocks = nn.ModuleList(
            SwinBlock(
                channels,
                options.stage_heads[stage],
                options.image_size // options.stride * factor,
                options,
                feedforward_width=options.feedforward_width // factor,
                shifted=number % 2 == 1,
                drop=drop,
            )
            for number, drop in enumerate(drops)
        )
        self.merge = PatchMerging(channels, options.norm_eps) if factor > 1 else None

    def forward(self, grid_BHWC: Float[Tensor, "b h w c"]) -> Float[Tensor, "b i j k"]:
        """A grid in, the next stage's grid out."""
        for block in self.blocks:
            grid_BHWC = block(grid_BHWC)
        return grid_BHWC if self.merge is None else self.merge(grid_BHWC)


class SwinPatches(nn.Module):
    """Pixels to the first grid: a convolution over disjoint patches, normalised."""

    def __init__(self, channels: int, options: VisionOptions) -> None:
        super().__init__()
        self.project = nn.Conv2d(3, channels, options.patch_size, options.patch_size)
        self.norm = LayerNorm(channels, options.norm_eps)

    def forward(self, images_BCHW: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b i j c"]:
        """(B, 3, H, W) → (B, H / patch, W / patch, C)."""
        grid_BHWC: Tensor = self.norm(self.project(images_BCHW).permute(0, 2, 3, 1))
        return grid_BHWC


class SwinEncoder(nn.Module):
    """The "swin" tower."""

    def __init__(self, width: int, options: VisionOptions) -> None:
        super().__init__()
        num_blocks = sum(options.stage_layers)
        drops = iter(stochastic_depth(options.drop_path, num_blocks))
        self.patches = SwinPatches(width // 2 ** (len(options.stage_layers) - 1), options)
        self.stages = nn.ModuleList(
            SwinStage(width, options, stage, [next(drops) for _ in range(num_layers)])
            for stage, num_layers in enumerate(options.stage_layers)
        )
        self.final_norm = LayerNorm(width, options.norm_eps)

    def forward(self, images_BCHW: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b n d"]:
        """Normalised pixels to 1 + P tokens; the first is the mean of the others."""
        grid_BHWC = self.patches(images_BCHW)
        for stage in self.stages:
            grid_BHWC = stage(grid_BHWC)
        tokens_BPD = self.final_norm(grid_BHWC).flatten(1, 2)
        return torch.cat([tokens_BPD.mean(1, keepdim=True), tokens_BPD], 1)
