"""The masking recipe against a by-the-book twin (values cannot agree, distributions must), and its bounds."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cclm.data.collate import mask_text, num_masks
from cclm.data.options import MaskingConfig

MASK_ID, VOCABULARY = 999, 1000


def positions_by_the_book(length: int, config: MaskingConfig, dice: random.Random) -> list[int]:
    """The positions to hide, told step by step as the published recipe is."""
    wanted = min(config.max_masks, max(1, round(config.mask_probability * length)))
    stop = length if config.maskable_eos else length - 1
    candidates = list(range(1, stop))
    dice.shuffle(candidates)
    chosen: list[int] = []
    for position in candidates:
        if len(chosen) >= wanted:
            break
        if position in chosen:
            continue
        span = dice.choice([2, 3]) if dice.random() < config.span_probability else 1
        for place in range(position, position + span):
            if place < stop and place not in chosen:
                chosen.append(place)
    if len(chosen) > wanted:
        dice.shuffle(chosen)
        chosen = chosen[:wanted]
    return sorted(chosen)


@settings(max_examples=200, deadline=None)
@given(
    length=st.integers(2, 40),
    seed=st.integers(0, 2**32),
    probability=st.floats(0, 1),
    most=st.integers(1, 20),
    span=st.floats(0, 1),
    eos=st.booleans(),
)
def test_the_bounds_hold(length: int, seed: int, probability: float, most: int, span: float, eos: bool) -> None:
    config = MaskingConfig(mask_probability=probability, max_masks=most, span_probability=span, maskable_eos=eos)
    ids = [100 + index for index in range(length)]
    result = mask_text(ids, config, MASK_ID, VOCABULARY, np.random.default_rng(seed))
    candidates = length - 1 if eos else length - 2
    columns = result.column_T.tolist()
    assert len(columns) == min(num_masks(length, config), candidates)
    assert columns == sorted(set(columns))
    assert all(1 <= column <= candidates for column in columns)
    assert result.label_T.tolist() == [ids[column] for column in columns]
    untouched = [index for index in range(length) if index not in columns]
    assert all(result.ids_L[index] == ids[index] for index in untouched)
    assert result.ids_L.dtype == result.label_T.dtype == np.int64


@pytest.mark.parametrize(
    ("length", "most", "expected"), [(2, 12, 1), (5, 12, 2), (40, 12, 12), (64, 20, 20), (3, 12, 1)]
)
def test_the_number_of_masks(length: int, most: int, expected: int) -> None:
    assert num_masks(length, MaskingConfig(max_masks=most)) == expected


@pytest.mark.slow
@pytest.mark.parametrize("config", [MaskingConfig(), MaskingConfig(span_probability=0.9), MaskingConfig(max_masks=3)])
@pytest.mark.parametrize("eos", [True, False])
def test_positions_are_distributed_as_by_the_book(config: MaskingConfig, eos: bool) -> None:
    config = MaskingConfig(
        mask_probability=config.mask_probability,
        max_masks=config.max_masks,
        span_probability=config.span_probability,
        maskable_eos=eos,
    )
    length, rounds = 12, 4000
    generator, dice = np.random.default_rng(0), random.Random(0)
    single, pairs = np.zeros((2, length)), np.zeros(2)
    for _ in range(rounds):
        fast = mask_text(list(range(length)), config, MASK_ID, VOCABULARY, generator).column_T.tolist()
        slow = positions_by_the_book(length, config, dice)
        for row, columns in enumerate((fast, slow)):
            single[row, columns] += 1
            pairs[row] += sum(column + 1 in columns for column in columns)
    single /= rounds
    pairs /= rounds * length
    assert np.abs(single[0] - single[1]).max() < 0.05  # 4.5 standard errors of a difference of two shares
    assert abs(pairs[0] - pairs[1]) < 0.01  # neighbours hidden together: the spans
    assert single[:, 0].max() == 0.0
    assert bool(single[:, -1].min() > 0) is eos


def test_eight_in_ten_are_hidden_one_replaced_one_kept() -> None:
    generator = np.random.default_rng(1)
    ids = [7] * 30
    seen = np.concatenate(
        [
            (result := mask_text(ids, MaskingConfig(), MASK_ID, VOCABULARY, generator)).ids_L[result.column_T]
            for _ in range(800)
        ]
    )
    assert np.mean(seen == MASK_ID) == pytest.approx(0.8001, abs=0.02)
    assert np.mean(seen == 7) == pytest.approx(0.1001, abs=0.015)
    others = seen[(seen != MASK_ID) & (seen != 7)]
    assert len(np.unique(others)) > 500 and others.min() < 20 and others.max() > 980  # the whole vocabulary


def test_single_tokens_only_without_spans() -> None:
    config = MaskingConfig(span_probability=0.0, mask_probability=0.1)
    generator = np.random.default_rng(2)
    counts = [len(mask_text(list(range(20)), config, MASK_ID, VOCABULARY, generator).column_T) for _ in range(50)]
    assert set(counts) == {2}


def test_nothing_can_be_hidden_in_an_empty_text_with_a_fixed_end() -> None:
    result = mask_text([0, 2], MaskingConfig(maskable_eos=False), MASK_ID, VOCABULARY, np.random.default_rng(0))
    assert result.column_T.size == result.label_T.size == 0 and result.ids_L.tolist() == [0, 2]


def test_a_text_of_a_length_always_takes_the_same_number_of_draws() -> None:
    after = set()
    for config in (MaskingConfig(), MaskingConfig(span_probability=1.0), MaskingConfig(max_masks=1)):
        generator = np.random.default_rng(3)
        mask_text(list(range(9)), config, MASK_ID, VOCABULARY, generator)
        after.add(generator.random())
    assert len(after) == 1
