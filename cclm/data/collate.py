"""Samples of one rank → tensors: what every view's batch is made with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cclm.data.batch import MaskedTokens, Tokens
from cclm.data.masking import MaskedText, MaskingConfig, mask_text
from cclm.data.tokens import TextTokenizer


@dataclass(frozen=True, kw_only=True)
class FusionDraws:
    """What a row needs if its pair goes through the fusion encoder as a positive."""

    masked: MaskedText
    """The text with hidden tokens."""
    noise_second_G: NDArray[np.float32]
    """Gumbel noise over the negative group's second sides."""
    noise_first_G: NDArray[np.float32]
    """Gumbel noise over the negative group's first sides."""


def fusion_draws(
    ids: Sequence[int],
    masking: MaskingConfig,
    negative_group: int,
    tokenizer: TextTokenizer,
    generator: np.random.Generator,
) -> FusionDraws:
    """Draw masks of a text, then the noise for its hard negatives among `negative_group` candidates."""
    masked = mask_text(ids, masking, tokenizer.mask_id, tokenizer.vocab_size, generator)
    noise = generator.gumbel(size=(2, negative_group)).astype(np.float32)
    return FusionDraws(masked=masked, noise_second_G=noise[0], noise_first_G=noise[1])


def pad(rows: Sequence[Sequence[int] | NDArray[np.int64]], pad_id: int, multiple: int = 1) -> Tokens:
    """Stack texts, padded to the longest, rounded up to a multiple of `multiple`."""
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    width = -(-int(lengths.max(initial=1)) // multiple) * multiple
    mask = np.arange(width)[None, :] < lengths[:, None]
    ids = np.full((len(rows), width), pad_id, dtype=np.int64)
    ids[mask] = np.concatenate([np.asarray(row, dtype=np.int64) for row in rows])
    return Tokens(ids_BL=torch.from_numpy(ids), mask_BL=torch.from_numpy(mask))


def masked_tokens(draws: Sequence[FusionDraws], pad_id: int, multiple: int) -> MaskedTokens:
    """Stack masked texts; slots are flat indices into the padded rows, in row order."""
    tokens = pad([draw.masked.ids_L for draw in draws], pad_id, multiple)
    width = tokens.ids_BL.shape[1]
    slots = np.concatenate([draw.masked.column_T + row * width for row, draw in enumerate(draws)])
    labels = np.concatenate([draw.masked.label_T for draw in draws])
    return MaskedTokens(tokens=tokens, slot_T=torch.from_numpy(slots), label_T=torch.from_numpy(labels))


def int64(values: Sequence[int]) -> Tensor:
    """A vector of integers."""
    return torch.from_numpy(np.array(values, dtype=np.int64))


@dataclass(frozen=True, kw_only=True)
class FusionTensors:
    """The part of a `ViewBatch` that belongs to the rows of the fusion encoder."""

    matching_row_F: Tensor
    noise_second_FG: Tensor
    noise_first_FG: Tensor
    masked: MaskedTokens


def fusion_tensors(draws_by_row: Sequence[FusionDraws | None], pad_id: int, multiple: int) -> FusionTensors:
    """Stack the draws of a batch's rows; those without any stay outside of the fusion encoder."""
    draws = [draw for draw in draws_by_row if draw is not None]
    return FusionTensors(
        matching_row_F=int64([row for row, draw in enumerate(draws_by_row) if draw is not None]),
        noise_second_FG=torch.from_numpy(np.stack([draw.noise_second_G for draw in draws])),
        noise_first_FG=torch.from_numpy(np.stack([draw.noise_first_G for draw in draws])),
        masked=masked_tokens(draws, pad_id, multiple),
    )
