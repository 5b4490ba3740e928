"""Samples of one rank → tensors: what every view's batch is made with.

Which tokens of a text are hidden, and behind what, follows the published recipe: whole stack, spans, 80/10/10.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cclm.data.batch import MaskedTokens, Tokens
from cclm.data.config import LARGEST_GROUP_WITH_NOISE
from cclm.data.options import MaskingConfig
from cclm.data.tokens import TextTokenizer


@dataclass(frozen=True, kw_only=True)
class MaskedText:
    """One text with hidden tokens."""

    ids_L: NDArray[np.int64]
    column_T: NDArray[np.int64]
    """Where to predict, ascending."""
    label_T: NDArray[np.int64]
    """What stood there."""


def num_masks(length: int, config: MaskingConfig) -> int:
    """How many tokens of a text of `length` tokens are to predict, before running out of candidates."""
    return min(config.max_masks, max(1, round(config.mask_probability * length)))


def mask_text(
    ids: Sequence[int], config: MaskingConfig, mask_id: int, vocab_size: int, generator: np.random.Generator
) -> MaskedText:
    """Hide some tokens of one text.

    Candidates are taken in random order until enough positions are chosen; a candidate may bring a span of two or
    three; a surplus is dropped at random. Of the chosen, 80 % become `<mask>`, 10 % any token of the vocabulary
    (special ones included), 10 % stay. `ids` begin with `<s>` and end with `</s>`; `generator`, the sample's own, gives
    a fixed number of draws for a given length.
    """
    length = len(ids)
    # one draw for everything: a numpy call costs as much as all the arithmetic of a short text
    order_key, span_coin, span_length, trim_key, kind, token = generator.random((6, length)).tolist()
    stop = length if config.maskable_eos else length - 1
    if stop < 2:  # `<s> </s>` with a fixed `</s>`: nothing can be hidden
        empty = np.zeros(0, dtype=np.int64)
        return MaskedText(ids_L=np.asarray(ids, dtype=np.int64), column_T=empty, label_T=empty)
    wanted = num_masks(length, config)
    chosen: set[int] = set()
    for position in sorted(range(1, stop), key=order_key.__getitem__):
        if len(chosen) >= wanted:
            break
        if position in chosen:
            continue
        span = 1
        if span_coin[position] < config.span_probability:
            span = 2 if span_length[position] < 0.5 else 3
        chosen.update(range(position, min(position + span, stop)))
    kept = sorted(sorted(chosen, key=trim_key.__getitem__)[:wanted])
    seen = list(ids)
    for position in kept:
        if kind[position] < 0.8:
            seen[position] = mask_id
        elif kind[position] < 0.9:
            seen[position] = int(token[position] * vocab_size)
    return MaskedText(
        ids_L=np.array(seen, dtype=np.int64),
        column_T=np.array(kept, dtype=np.int64),
        label_T=np.array([ids[position] for position in kept], dtype=np.int64),
    )


@dataclass(frozen=True, kw_only=True)
class FusionDraws:
    """What a row needs if its pair goes through the fusion encoder as a positive."""

    masked: MaskedText
    noise_second_G: NDArray[np.floating]
    """Gumbel noise over the negative group's second sides; of a group above `LARGEST_GROUP_WITH_NOISE` one number."""
    noise_first_G: NDArray[np.floating]
    """The same over its first sides."""


def fusion_draws(
    ids: Sequence[int],
    masking: MaskingConfig,
    negative_group: int,
    tokenizer: TextTokenizer,
    generator: np.random.Generator,
) -> FusionDraws:
    """Draw masks of a text, then what its hard negatives among `negative_group` candidates are drawn with."""
    masked = mask_text(ids, masking, tokenizer.mask_id, tokenizer.vocab_size, generator)
    if negative_group > LARGEST_GROUP_WITH_NOISE:
        second, first = generator.random((2, 1))
    else:
        second, first = generator.gumbel(size=(2, negative_group)).astype(np.float32)
    return FusionDraws(masked=masked, noise_second_G=second, noise_first_G=first)


def pad(rows: Sequence[Sequence[int] | NDArray[np.int64]], pad_id: int, multiple: int = 1) -> Tokens:
    """Stack texts, padded to the longest, rounded up to a multiple of `multiple`."""
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    width = -(-int(lengths.max(initial=1)) // multiple) * multiple
    mask = np.arange(width)[None, :] < lengths[:, None]
    ids = np.full((len(rows), width), pad_id, dtype=np.int64)
    ids[mask] = np.concatenate([np.asarray(row, dtype=np.int64) for row in rows])
    return Tokens(ids_BL=torch.from_numpy(ids), mask_BL=torch.from_numpy(mask), num_tokens=int(lengths.sum()))


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


def row_tensors(
    rows: range, draws_by_row: Sequence[FusionDraws | None], is_counted: bool, pad_id: int, multiple: int
) -> dict[str, Any]:
    """Return the fields of a `ViewBatch` about its rows, and about those of the fusion encoder: those that have draws.

    `rows`: their numbers in the global batch. `is_counted`: False where a row with draws only stands in.
    """
    draws = [draw for draw in draws_by_row if draw is not None]
    return dict(
        row_R=int64(rows),
        counted_F=torch.full((len(draws),), float(is_counted)),
        matching_row_F=int64([row for row, draw in enumerate(draws_by_row) if draw is not None]),
        noise_second_FG=torch.from_numpy(np.stack([draw.noise_second_G for draw in draws])),
        noise_first_FG=torch.from_numpy(np.stack([draw.noise_first_G for draw in draws])),
        masked=masked_tokens(draws, pad_id, multiple),
    )


def no_matching_rows(rows: range) -> dict[str, Any]:
    """Return the same fields for a view that matches nothing and masks nothing."""
    nothing = torch.zeros(0, 1)
    hidden = Tokens(ids_BL=nothing.long(), mask_BL=nothing.bool(), num_tokens=0)
    return dict(
        row_R=int64(rows),
        counted_F=nothing[:, 0],
        matching_row_F=int64([]),
        noise_second_FG=nothing,
        noise_first_FG=nothing,
        masked=MaskedTokens(tokens=hidden, slot_T=int64([]), label_T=int64([])),
    )
