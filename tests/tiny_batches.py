"""Batches in tests: whether two are equal, and what they hold without the padding."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import torch

from cclm.data.batch import MaskedTokens, TensorRecord, Tokens
from cclm.data.collate import FusionDraws, MaskedText


def same(first: object, second: object) -> bool:
    """Whether two batches, or parts of them, are equal bit by bit."""
    if isinstance(first, TensorRecord):
        return type(first) is type(second) and all(
            same(getattr(first, item.name), getattr(second, item.name)) for item in fields(first)
        )
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and torch.equal(first, second) and first.dtype == second.dtype
    if isinstance(first, dict):
        return (
            isinstance(second, dict) and list(first) == list(second) and all(map(same, first.values(), second.values()))
        )
    return first == second


def texts(tokens: Tokens) -> list[list[int]]:
    """The real tokens of each text."""
    return [ids[mask].tolist() for ids, mask in zip(tokens.ids_BL, tokens.mask_BL, strict=True)]


def hidden(masked: MaskedTokens) -> list[tuple[list[int], list[tuple[int, int]]]]:
    """Each masked text with its (column, label) pairs."""
    width = masked.tokens.ids_BL.shape[1]
    slots: list[list[tuple[int, int]]] = [[] for _ in masked.tokens.ids_BL]
    for slot, label in zip(masked.slot_T.tolist(), masked.label_T.tolist(), strict=True):
        slots[slot // width].append((slot % width, label))
    return list(zip(texts(masked.tokens), slots, strict=True))


def masked_draws(ids: list[int], columns: list[int], labels: list[int]) -> FusionDraws:
    """Draws for one text in a negative group of two."""
    noise = np.zeros(2, dtype=np.float32)
    masked = MaskedText(ids_L=np.array(ids), column_T=np.array(columns), label_T=np.array(labels))
    return FusionDraws(masked=masked, noise_second_G=noise, noise_first_G=noise + 1)
