"""Scores of pairs in blocks equal those of each pair alone, and no more is encoded at a time than was asked for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cclm.evaluate import pair_scores
from cclm.evaluate.pair_scores import PairBatch, match_scores, score_pairs
from cclm.evaluate.rerank import PairNumbers
from tests.unit.model.tiny import tiny_images, tiny_model

NUM_IMAGES, BATCH, BLOCK = 7, 2, 3
LENGTHS = (5, 2, 7, 3, 3, 6, 2, 4, 7, 5, 2)


def some_pairs(per_text: int) -> PairNumbers:
    generator = torch.Generator().manual_seed(3)
    images = [torch.randperm(NUM_IMAGES, generator=generator)[:per_text].sort().values for _ in LENGTHS]
    number_P = torch.cat([text * NUM_IMAGES + image_K for text, image_K in enumerate(images)])
    return PairNumbers(number_P=number_P, num_images=NUM_IMAGES)


@pytest.mark.parametrize("per_text", [1, 3, NUM_IMAGES])
def test_blocks_give_what_each_pair_alone_gives(monkeypatch: pytest.MonkeyPatch, per_text: int) -> None:
    monkeypatch.setattr(pair_scores, "IMAGES_AT_ONCE", BLOCK)
    monkeypatch.setattr(pair_scores, "PAIRS_PER_TEXT", 2)
    model, pairs = tiny_model().eval(), some_pairs(per_text)
    generator = torch.Generator().manual_seed(5)
    images_I3HW = tiny_images(NUM_IMAGES)
    texts = [torch.randint(5, 40, (length,), generator=generator) for length in LENGTHS]
    encoded: list[int] = []

    def states(image_I: Tensor) -> Tensor:
        assert len(image_I) <= BLOCK
        encoded.extend(image_I.tolist())
        return model.encode_images(images_I3HW[image_I])

    def score(image_IND: Tensor, batch: PairBatch) -> Tensor:
        assert len(image_IND) <= BLOCK and len(batch.text_U) <= BATCH and len(batch.place_B) <= 2 * BATCH
        ids_UL = torch.nn.utils.rnn.pad_sequence(
            [texts[text] for text in batch.text_U.tolist()], batch_first=True, padding_value=1
        )
        mask_UL = ids_UL != 1
        return match_scores(model, image_IND, batch, model.encode_texts(ids_UL, mask_UL), mask_UL)

    with torch.inference_mode():
        found_P = score_pairs(pairs, torch.tensor(LENGTHS), states, score, batch_size=BATCH, device=torch.device("cpu"))
        alone_P = torch.stack(
            [
                model.score(images_I3HW[image][None], texts[text][None])[0, 1]
                for image, text in zip(pairs.images.tolist(), pairs.texts.tolist(), strict=True)
            ]
        )
    assert len(found_P) == len(pairs.number_P) == len({*pairs.number_P.tolist()})
    assert sorted(encoded) == sorted({*pairs.images.tolist()}), "each image once"
    torch.testing.assert_close(found_P, alone_P, atol=2e-5, rtol=0)
    assert found_P.std() > 1e-3
