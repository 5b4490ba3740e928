"""Which patches of an image a training step computes (FLIP, arXiv 2212.00794): a share, drawn by image and step.

The draw is a hash of the image's key and of the patch's number, computed where the images are, and nothing waits for
it. What the key depends on (sample, step, seed) decides what the draw depends on; number and order of the images in the
batch do not matter, so all numbers of ranks and of micro-batches draw the same.
"""

from __future__ import annotations

import torch
from torch import Tensor

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
