from __future__ import annotations

from typing import Any

import torch

from cclm.evaluate.embed import encode_images, encode_texts


def test_images_come_back_in_order_whatever_the_batch_size(naming_model: Any, pictures: Any) -> None:
    images = pictures([3, 1, 4, 1, 5])
    whole, pieces = (encode_images(naming_model(8), images, batch_size=size) for size in (5, 2))
    assert torch.equal(whole.state_NLD, pieces.state_NLD)
    assert torch.equal(whole.feature_NE, pieces.feature_NE)
    assert whole.state_NLD[:, 0, 0].tolist() == [3, 1, 4, 1, 5]
    assert whole.mask_NL.shape == (5, 3) and whole.mask_NL.all()


def test_texts_come_back_in_order_although_encoded_by_length(naming_model: Any, words: Any) -> None:
    ids_NL, mask_NL = words([7, 2, 5, 3], [4, 1, 3, 2])
    for batch_size in (1, 3, 10):
        texts = encode_texts(naming_model(8), ids_NL, mask_NL, batch_size=batch_size)
        assert texts.state_NLD[:, 0, 0].tolist() == [7, 2, 5, 3]
        kept = texts.state_NLD[..., 0][mask_NL]
        assert torch.equal(kept, ids_NL[mask_NL].float()), "the states of real tokens must be those of their ids"
        assert texts.state_NLD.shape == (4, 4, 1)


def test_equal_texts_are_encoded_once_and_get_equal_features(naming_model: Any, words: Any) -> None:
    model = naming_model(8)
    texts = encode_texts(model, *words([7, 2, 7, 7], [2, 1, 2, 1]), batch_size=2)
    assert model.texts_encoded == 3
    assert torch.equal(texts.feature_NE[0], texts.feature_NE[2])


def test_padding_keeps_the_pad_id_and_no_batch_is_longer_than_its_longest_text(naming_model: Any, words: Any) -> None:
    seen: list[torch.Tensor] = []

    class Recording(naming_model):
        def encode_texts(self, ids_BL: Any, mask_BL: Any) -> Any:  # type: ignore[no-untyped-def]
            seen.append(ids_BL)
            return super().encode_texts(ids_BL, mask_BL)

    encode_texts(Recording(8), *words([7, 2, 5, 3], [5, 1, 3, 2]), batch_size=2)
    assert [ids.shape for ids in seen] == [(2, 2), (2, 5)]
    assert seen[0].tolist() == [[2, 99], [3, 1]]
