"""Every kind of model does the same things; what one cannot do, it refuses in a sentence."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from cclm.model.modeling_cclm import CCLMModel
from tests.kinds import EVERY_KIND, KINDS
from tests.tiny_families import wavy_model
from tests.unit.model.tiny import tiny_texts

PAIRS = [name for name, options in KINDS.items() if options.fusion.num_memories > 1]
SINGLE = [name for name in KINDS if name not in PAIRS]
MASK = 4


@pytest.fixture(scope="module")
def models() -> dict[str, CCLMModel]:
    return {name: wavy_model(options) for name, options in KINDS.items()}


@pytest.fixture(autouse=True)
def _no_gradients() -> object:
    with torch.inference_mode():
        yield


def pictures(number: int) -> Tensor:
    return torch.randn(number, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def texts() -> tuple[Tensor, Tensor]:
    ids_BL, mask_BL = tiny_texts()
    return ids_BL % 26 + 4 * (ids_BL != 1), mask_BL


def masked_texts() -> tuple[Tensor, Tensor]:
    """The same; a word of each is hidden, two of the third."""
    ids_BL, mask_BL = texts()
    ids_BL = ids_BL.clone()
    ids_BL[:, 0] = MASK
    ids_BL[2, 3] = MASK
    return ids_BL, mask_BL


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_features_are_unit_vectors_and_do_not_depend_on_the_batch(models: dict[str, CCLMModel], kind: str) -> None:
    model, (ids_BL, mask_BL) = models[kind], texts()
    image_BE, text_CE = model.get_image_features(pictures(5)), model.get_text_features(ids_BL, mask_BL)
    for feature in (image_BE, text_CE):
        torch.testing.assert_close(feature.norm(dim=1), torch.ones(len(feature)))
    torch.testing.assert_close(model.get_image_features(pictures(5)[3:4])[0], image_BE[3], atol=1e-5, rtol=1e-4)
    alone_E = model.get_text_features(ids_BL[1:2, :1])[0]
    torch.testing.assert_close(alone_E, text_CE[1], atol=1e-5, rtol=1e-4)
    output = model(pixel_values=pictures(5), input_ids=ids_BL, attention_mask=mask_BL.long())
    expected = image_BE @ text_CE.T / model.temperature()
    torch.testing.assert_close(output.logits_per_image, expected, atol=1e-4, rtol=1e-4)
    assert output.pooler_output is None and model(pixel_values=pictures(2)).pooler_output.shape == (
        2,
        image_BE.shape[1],
    )


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_scores_are_the_same_in_any_batch(models: dict[str, CCLMModel], kind: str) -> None:
    model, (ids_BL, mask_BL) = models[kind], texts()
    images = pictures(5) if kind in SINGLE else pictures(10).view(5, 2, 3, 32, 32)
    whole_B2 = model.score(images, ids_BL, mask_BL)
    assert whole_B2.shape == (5, 2)
    torch.testing.assert_close(model.score(images, ids_BL, mask_BL, batch_size=2), whole_B2, atol=1e-5, rtol=1e-4)
    other_B2 = model.score(images.flip(0), ids_BL, mask_BL)
    assert (other_B2 - whole_B2).abs().max() > 1e-3, "the score looks at the image"


@pytest.mark.parametrize("kind", PAIRS)
def test_a_model_of_pairs_reads_both_images_and_refuses_one(models: dict[str, CCLMModel], kind: str) -> None:
    model, (ids_BL, mask_BL) = models[kind], texts()
    images = pictures(10).view(5, 2, 3, 32, 32)
    whole_B2 = model.score(images, ids_BL, mask_BL)
    for place in (0, 1):
        changed = images.clone()
        changed[:, place] = 0.0
        assert (model.score(changed, ids_BL, mask_BL) - whole_B2).abs().max() > 1e-3
    with pytest.raises(ValueError, match=r"expected 2 images for each text, shape \(B, 2, 3, H, W\), got \(5, 3"):
        model.score(pictures(5), ids_BL, mask_BL)
    for method in (model.score_all, model.rerank):
        with pytest.raises(ValueError, match=r"got one that reads 2\. Use `score`"):
            method(pictures(5), ids_BL, mask_BL)


@pytest.mark.parametrize("number", [1, 4, 6])
def test_each_text_has_its_image(models: dict[str, CCLMModel], number: int) -> None:
    model, (ids_BL, mask_BL) = models["swin_regions"], texts()
    said = f"got {number} for 5 texts. `score_all` takes"
    for look in (model.score, partial(model.score, batch_size=1), model.locate):
        with pytest.raises(ValueError, match=said):
            look(pictures(number), ids_BL, mask_BL)
    with pytest.raises(ValueError, match=said):
        model.fill_mask(*masked_texts(), pixel_values=pictures(number), mask_token_id=MASK)
    with pytest.raises(ValueError, match="got 3 for 5 texts"):
        models["nlvr_pairs"].classify(torch.zeros(3, 2, 3, 32, 32), ids_BL, mask_BL)
    with pytest.raises(ValueError, match="top_k of at least 1, got 0"):
        model.rerank(pictures(number), ids_BL, mask_BL, top_k=0)


@pytest.mark.parametrize("kind", SINGLE)
def test_all_pairs_are_the_pairs_one_by_one(models: dict[str, CCLMModel], kind: str) -> None:
    model, (ids_BL, mask_BL) = models[kind], texts()
    all_IT2 = model.score_all(pictures(3), ids_BL, mask_BL, batch_size=4)
    assert all_IT2.shape == (3, 5, 2)
    for image in range(3):
        one_B2 = model.score(pictures(3)[image : image + 1].expand(5, -1, -1, -1), ids_BL, mask_BL)
        torch.testing.assert_close(all_IT2[image], one_B2, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", SINGLE)
def test_reranking_orders_the_proposed_by_both_scores(models: dict[str, CCLMModel], kind: str) -> None:
    model, (ids_BL, mask_BL) = models[kind], texts()
    logits_TI2 = model.score_all(pictures(6), ids_BL, mask_BL).transpose(0, 1)
    odds_TI = logits_TI2[..., 1] - logits_TI2[..., 0]
    cosine_TI = model.get_text_features(ids_BL, mask_BL) @ model.get_image_features(pictures(6)).T
    found = model.rerank(pictures(6), ids_BL, mask_BL, top_k=4, match_weight=0.5, batch_size=3)
    for text in range(5):
        proposed = cosine_TI[text].topk(4).indices
        score_K = 0.5 * odds_TI[text, proposed] + cosine_TI[text, proposed] / model.temperature()
        order = score_K.argsort(descending=True)
        torch.testing.assert_close(found.score[text], score_K[order], atol=1e-3, rtol=1e-4)
        assert found.image[text].tolist() == proposed[order].tolist()
        expected = odds_TI[text, proposed[order]].sigmoid()
        torch.testing.assert_close(found.match_probability[text], expected, atol=1e-4, rtol=1e-4)
    by_cosine = model.rerank(pictures(6), ids_BL, mask_BL, top_k=99, match_weight=0.0)
    assert torch.equal(by_cosine.image, cosine_TI.sort(dim=1, descending=True, stable=True).indices)


@pytest.mark.parametrize("kind", SINGLE)
@pytest.mark.parametrize("from_image", [True, False])
def test_masked_words_come_from_an_image_or_a_sentence(
    models: dict[str, CCLMModel], kind: str, from_image: bool
) -> None:
    model, (ids_BL, mask_BL), (memory_ids, memory_mask) = models[kind], masked_texts(), texts()
    memory = {"pixel_values": pictures(5)} if from_image else {}
    if not from_image:
        memory = {"memory_ids": memory_ids, "memory_attention_mask": memory_mask}
    found = model.fill_mask(ids_BL, mask_BL, **memory, top_k=3, mask_token_id=MASK)
    assert found.row.tolist() == [0, 1, 2, 2, 3, 4] and found.column.tolist() == [0, 0, 0, 3, 0, 0]
    memory_BND = model.encode_images(pictures(5)) if from_image else model.encode_texts(memory_ids, memory_mask)
    fused = model.fuse(model.encode_texts(ids_BL, mask_BL), mask_BL, memory_BND, None if from_image else memory_mask)
    logits_V = model.decode_with(model.masked_lm_states(fused[2, 3][None]), functional.linear)[0]
    probability_K, token_K = logits_V.softmax(-1).topk(3)
    torch.testing.assert_close(found.probability[3], probability_K, atol=1e-5, rtol=1e-3)
    assert found.token_ids[3].tolist() == token_K.tolist()


def test_fill_mask_says_what_is_missing(models: dict[str, CCLMModel]) -> None:
    model, (ids_BL, mask_BL) = models["swin_regions"], masked_texts()
    with pytest.raises(ValueError, match=r"got neither\. The hidden words are read from one"):
        model.fill_mask(ids_BL, mask_BL, mask_token_id=MASK)
    with pytest.raises(ValueError, match="got both"):
        model.fill_mask(ids_BL, mask_BL, pixel_values=pictures(5), memory_ids=ids_BL, mask_token_id=MASK)
    with pytest.raises(ValueError, match="<mask> in every text, got one without"):
        model.fill_mask(texts()[0], mask_BL, pixel_values=pictures(5), mask_token_id=3)
    with pytest.raises(ValueError, match="expected mask_token_id"):
        model.fill_mask(ids_BL, mask_BL, pixel_values=pictures(5))
    with pytest.raises(ValueError, match="masked_lm_head: true, got one without"):
        models["nlvr_pairs"].fill_mask(
            ids_BL, mask_BL, pixel_values=pictures(10).view(5, 2, 3, 32, 32), mask_token_id=MASK
        )


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_boxes_lie_in_the_image_or_are_refused(models: dict[str, CCLMModel], kind: str) -> None:
    model, (ids_BL, mask_BL) = models[kind], texts()
    if not KINDS[kind].box_head:
        with pytest.raises(ValueError, match=r"boxes: expected a model with box_head: true"):
            model.locate(pictures(5), ids_BL, mask_BL)
        return
    boxes_B4 = model.locate(pictures(5), ids_BL, mask_BL)
    assert boxes_B4.shape == (5, 4) and bool(((boxes_B4 > 0) & (boxes_B4 < 1)).all())
    assert (model.locate(pictures(5).flip(0), ids_BL, mask_BL) - boxes_B4).abs().max() > 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("kind", EVERY_KIND)
def test_a_saved_folder_loads_in_any_dtype(models: dict[str, CCLMModel], kind: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    models[kind].save_pretrained(tmp_path)
    again = CCLMModel.from_pretrained(tmp_path)
    assert all(torch.equal(value, models[kind].state_dict()[name]) for name, value in again.state_dict().items())
    shared = {name: value.data_ptr() for name, value in again.state_dict().items()}
    assert len(set(shared.values())) == len({v.data_ptr() for v in models[kind].state_dict().values()}), "ties survive"
    half = CCLMModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    feature = half.get_image_features(pictures(2).to(half.dtype))
    assert feature.dtype == torch.bfloat16
    expected = models[kind].get_image_features(pictures(2))
    assert functional.cosine_similarity(feature.float(), expected).min() > 0.99


def padded_left(ids_BL: Tensor, mask_BL: Tensor) -> tuple[Tensor, Tensor]:
    rows = [torch.roll(row, int((~mask).sum())) for row, mask in zip(ids_BL, mask_BL, strict=True)]
    return torch.stack(rows), mask_BL.flip(1)


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_padding_may_stand_on_the_left_and_the_mask_may_be_left_out(models: dict[str, CCLMModel], kind: str) -> None:
    model, (ids_BL, mask_BL) = models[kind], texts()
    for given in (padded_left(ids_BL, mask_BL), (ids_BL, None), (padded_left(ids_BL, mask_BL)[0], None)):
        assert torch.equal(model.get_text_features(*given), model.get_text_features(ids_BL, mask_BL))
        if kind not in PAIRS:
            assert torch.equal(model.score_all(pictures(2), *given), model.score_all(pictures(2), ids_BL, mask_BL))
            expected = model.score(pictures(5), ids_BL, mask_BL)
            assert torch.equal(model.score(pictures(5), *given), expected)
        if model.config.box_head:
            assert torch.equal(model.locate(pictures(5), *given), model.locate(pictures(5), ids_BL, mask_BL))


@pytest.mark.parametrize("kind", [name for name in SINGLE if KINDS[name].masked_lm_head])
def test_words_are_filled_in_where_they_stand_in_texts_padded_on_the_left(
    models: dict[str, CCLMModel], kind: str
) -> None:
    model, (ids_BL, mask_BL) = models[kind], masked_texts()
    right = model.fill_mask(ids_BL, mask_BL, pixel_values=pictures(5), mask_token_id=MASK)
    left_ids_BL, left_mask_BL = padded_left(ids_BL, mask_BL)
    for mask in (left_mask_BL, None):
        left = model.fill_mask(left_ids_BL, mask, pixel_values=pictures(5), mask_token_id=MASK)
        assert torch.equal(left.token_ids, right.token_ids) and torch.equal(left.probability, right.probability)
        assert (left_ids_BL[left.row, left.column] == MASK).all()
    read = [
        model.fill_mask(*one, memory_ids=two[0], memory_attention_mask=two[1], mask_token_id=MASK).probability
        for one, two in (((ids_BL, mask_BL), texts()), ((left_ids_BL, left_mask_BL), padded_left(*texts())))
    ]
    assert torch.equal(*read)
