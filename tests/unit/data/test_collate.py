from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cclm.data.collate import fusion_draws, masked_tokens, pad, row_tensors
from cclm.data.config import LARGEST_GROUP_WITH_NOISE
from cclm.data.options import MaskingConfig
from cclm.data.tokens import TextTokenizer
from tests.tiny_batches import masked_draws


@pytest.mark.parametrize(("multiple", "width"), [(1, 3), (2, 4), (8, 8)])
def test_rows_are_padded_to_the_longest(multiple: int, width: int) -> None:
    tokens = pad([[5, 6, 7], [8]], 1, multiple)
    assert tokens.ids_BL.tolist() == [[5, 6, 7] + [1] * (width - 3), [8] + [1] * (width - 1)]
    assert tokens.mask_BL.sum(1).tolist() == [3, 1] and tokens.mask_BL[:, 0].all()
    assert tokens.ids_BL.dtype == torch.int64 and tokens.mask_BL.dtype == torch.bool


def test_slots_point_at_the_hidden_tokens() -> None:
    masked = masked_tokens([masked_draws([0, 9, 2], [1], [5]), masked_draws([0, 9, 9, 2], [1, 2], [6, 7])], 1, 1)
    assert masked.slot_T.tolist() == [1, 5, 6]
    assert masked.tokens.ids_BL.flatten()[masked.slot_T].tolist() == [9, 9, 9]
    assert masked.label_T.tolist() == [5, 6, 7]


def test_rows_without_draws_stay_outside_of_the_fusion_encoder() -> None:
    draws = [None, masked_draws([0, 9, 2], [1], [5]), None, masked_draws([0, 9, 2], [1], [6])]
    part = SimpleNamespace(**row_tensors(range(8, 12), draws, True, 1, 4))
    assert part.row_R.tolist() == [8, 9, 10, 11] and part.counted_F.tolist() == [1, 1]
    assert part.matching_row_F.tolist() == [1, 3] and part.masked.label_T.tolist() == [5, 6]
    assert part.noise_second_FG.tolist() == [[0.0, 0.0]] * 2 and part.noise_first_FG.tolist() == [[1.0, 1.0]] * 2
    assert part.masked.tokens.ids_BL.shape == (2, 4)
    assert row_tensors(range(1), draws[1:2], False, 1, 4)["counted_F"].tolist() == [0], "it only stands in"


@pytest.mark.parametrize("group", [2, LARGEST_GROUP_WITH_NOISE, LARGEST_GROUP_WITH_NOISE + 1, 1 << 20])
def test_a_large_group_costs_a_row_two_numbers(tokenizer: TextTokenizer, group: int) -> None:
    draws = fusion_draws([0, 9, 9, 2], MaskingConfig(), group, tokenizer, np.random.default_rng(0))
    for noise in (draws.noise_second_G, draws.noise_first_G):
        assert noise.shape == ((1,) if group > LARGEST_GROUP_WITH_NOISE else (group,))
    assert draws.noise_second_G[0] != draws.noise_first_G[0]
