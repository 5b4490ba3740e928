from __future__ import annotations

import numpy as np
import pytest
import torch

from cclm.data.collate import collate_text_pairs, masked_tokens, pad
from cclm.data.masking import MaskedText
from cclm.data.samples import FusionDraws, TextPairSample


def draws(ids: list[int], columns: list[int], labels: list[int]) -> FusionDraws:
    noise = np.zeros(2, dtype=np.float32)
    masked = MaskedText(ids_L=np.array(ids), column_T=np.array(columns), label_T=np.array(labels))
    return FusionDraws(masked=masked, noise_second_G=noise, noise_first_G=noise + 1)


@pytest.mark.parametrize(("multiple", "width"), [(1, 3), (2, 4), (8, 8)])
def test_rows_are_padded_to_the_longest(multiple: int, width: int) -> None:
    tokens = pad([[5, 6, 7], [8]], 1, multiple)
    assert tokens.ids_BL.tolist() == [[5, 6, 7] + [1] * (width - 3), [8] + [1] * (width - 1)]
    assert tokens.mask_BL.sum(1).tolist() == [3, 1] and tokens.mask_BL[:, 0].all()
    assert tokens.ids_BL.dtype == torch.int64 and tokens.mask_BL.dtype == torch.bool


def test_slots_point_at_the_hidden_tokens() -> None:
    masked = masked_tokens([draws([0, 9, 2], [1], [5]), draws([0, 9, 9, 2], [1, 2], [6, 7])], 1, 1)
    assert masked.slot_T.tolist() == [1, 5, 6]
    assert masked.tokens.ids_BL.flatten()[masked.slot_T].tolist() == [9, 9, 9]
    assert masked.label_T.tolist() == [5, 6, 7]


def sample(anchor: list[int], others: list[list[int]], swapped: bool, fusion: FusionDraws | None) -> TextPairSample:
    return TextPairSample(
        anchor=anchor,
        others=others,
        swapped=swapped,
        languages=["en", "de"],
        identity=sum(anchor),
        ledger=-len(others),
        fusion=fusion,
    )


def test_equal_texts_share_a_row() -> None:
    fusion = draws([0, 9, 2], [1], [5])
    batch = collate_text_pairs(
        [
            sample([0, 5, 2], [[0, 6, 2], [0, 7, 2]], False, fusion),
            sample([0, 6, 2], [[0, 8, 8, 2], [0, 5, 2]], True, None),
        ],
        pad_id=1,
    )
    assert batch.text.ids_BL.tolist() == [[0, 5, 2, 1], [0, 6, 2, 1], [0, 7, 2, 1], [0, 8, 8, 2]]
    assert batch.first_P.tolist() == [0, 0, 1, 1]
    assert batch.second_P.tolist() == [1, 2, 3, 0]
    assert batch.memory_S.tolist() == [0, 3] and batch.query_S.tolist() == [1, 1]
    assert batch.identity_S.tolist() == [7, 8] and batch.identity_P.tolist() == [7, 7, 8, 8]
    assert batch.matching_row_F.tolist() == [0]
    assert batch.noise_second_FG.tolist() == [[0.0, 0.0]] and batch.noise_first_FG.tolist() == [[1.0, 1.0]]
    assert batch.ledger_S.tolist() == [-2, -2]
