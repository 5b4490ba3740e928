"""Scores of pairs in blocks equal those of each pair alone, and no more is encoded at a time than was asked for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cclm.evaluate import pair_scores
from cclm.evaluate.pair_scores import PairBatch, match_scores, score_pairs
from cclm.evaluate.rerank import Pairs
from cclm.evaluate.retrieval import nearest
from tests.unit.model.tiny import tiny_images, tiny_model

NUM_IMAGES, BATCH, BLOCK = 7, 2, 3
LENGTHS = (5, 2, 7, 3, 3, 6, 2, 4, 7, 5, 2)


def some_pairs(top_k: int) -> Pairs:
    generator = torch.Generator().manual_seed(3)
    image_IE, text_TE = (torch.randn(count, 4, generator=generator) for count in (NUM_IMAGES, len(LENGTHS)))
    numbers = torch.arange(len(LENGTHS)), torch.arange(NUM_IMAGES)
    return Pairs.of(
        nearest(text_TE, image_IE, *numbers, top_k), nearest(image_IE, text_TE, *numbers[::-1], top_k), NUM_IMAGES
    )


@pytest.mark.parametrize("top_k", [1, 3, 50])
def test_blocks_give_what_each_pair_alone_gives(monkeypatch: pytest.MonkeyPatch, top_k: int) -> None:
    monkeypatch.setattr(pair_scores, "IMAGES_AT_ONCE", BLOCK)
    monkeypatch.setattr(pair_scores, "PAIRS_PER_TEXT", 2)
    model, pairs = tiny_model().eval(), some_pairs(top_k)
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


def test_scores_go_back_to_the_candidates_of_both_directions() -> None:
    pairs = some_pairs(3)
    forward_TK, backward_CK = pairs.scores(pairs.number_P.float())
    assert forward_TK.shape == (len(LENGTHS), 3) and backward_CK.shape == (NUM_IMAGES, 3)
    for text, numbers in enumerate(forward_TK.tolist()):
        assert {number // NUM_IMAGES for number in numbers} == {text}
    for image, numbers in enumerate(backward_CK.tolist()):
        assert {number % NUM_IMAGES for number in numbers} == {image}
