"""Which tokens of a text are hidden, and behind what (the published recipe: whole stack, spans, 80/10/10)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cclm.data.options import MaskingConfig


@dataclass(frozen=True, kw_only=True)
class MaskedText:
    """One text with hidden tokens."""

    ids_L: NDArray[np.int64]
    """The ids that the model sees."""
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
    (special ones included), 10 % stay.

    Args:
        ids: the text with `<s>` and `</s>`, at least two tokens.
        config: amounts.
        mask_id: id of `<mask>`.
        vocab_size: random tokens are drawn below it.
        generator: the sample's own; a fixed number of draws for a given length.
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
