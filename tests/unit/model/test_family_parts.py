"""What the published layouts add to the model: positions from ids, token type, regions, boxes, no memory, epsilons."""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch
from torch import nn
from torch.nn import functional

from cclm.model.encoders import token_positions
from cclm.model.modeling_cclm import CCLMModel
from cclm.model.options import TextOptions
from cclm.pretrained.families import FAMILIES
from cclm.pretrained.import_cclm import meta_model
from tests.tiny_families import TINY
from tests.unit.model.tiny import tiny_images, tiny_model, tiny_texts

IDS = torch.tensor([[0, 7, 1, 8, 2], [0, 9, 2, 1, 1]])


def test_positions_from_ids_are_those_of_roberta() -> None:
    options = TextOptions(position_rule="ids", pad_token_id=1)
    assert token_positions(IDS, options).tolist() == [[2, 3, 1, 4, 5], [2, 3, 4, 1, 1]]
    by_column = TextOptions(position_offset=2)
    assert token_positions(IDS, by_column).tolist() == [[2, 3, 4, 5, 6]] * 2


def test_positions_from_ids_know_the_end_of_the_table() -> None:
    with pytest.raises(ValueError, match=r"expected at most 3 tokens \(text.max_positions\), got 5"):
        token_positions(IDS, TextOptions(position_rule="ids", pad_token_id=1, max_positions=5))


def test_the_pad_rows_are_never_trained() -> None:
    model = tiny_model(text={"position_rule": "ids"}).train()
    model.encode_texts(IDS, IDS >= 0).sum().backward()
    embeddings = model.text_encoder.embeddings
    for table in (embeddings.words, embeddings.positions):
        assert table.weight.grad is not None
        assert not table.weight.grad[1].any()
        assert table.weight.grad[2].any()


def test_the_token_type_is_added_to_every_token() -> None:
    model = tiny_model(text={"token_type": True, "num_layers": 0})
    model.text_encoder.stack.final_norm = None
    plain = model.encode_texts(*tiny_texts())
    vector = torch.randn(16)
    with torch.no_grad():
        model.text_encoder.embeddings.token_type.add_(vector)
    mask_BL = tiny_texts()[1]
    torch.testing.assert_close(model.encode_texts(*tiny_texts())[mask_BL], plain[mask_BL] + vector)


def test_regions_keep_patches_and_average_their_own() -> None:
    model = tiny_model()
    image_BND = model.encode_images(tiny_images(2))
    mask = torch.tensor([[1, 1, 0, 0, 1], [1, 1, 1, 1, 1], [1, 0, 1, 0, 0]], dtype=torch.bool)
    region_RND = model.pool_regions(image_BND, torch.tensor([1, 0, 0]), mask)
    assert torch.equal(region_RND[:, 1:], image_BND[torch.tensor([1, 0, 0]), 1:])
    torch.testing.assert_close(region_RND[0, 0], (image_BND[1, 1] + image_BND[1, 4]) / 2)
    torch.testing.assert_close(region_RND[1, 0], image_BND[0, 0])
    torch.testing.assert_close(region_RND[2, 0], image_BND[0, 2])


def test_boxes_are_shares_of_the_image() -> None:
    model = tiny_model(box_head=True)
    fused = torch.randn(3, 4, 16)
    head = model.box_head
    hidden = functional.gelu(functional.layer_norm(head.widen(fused[:, 0]), (12,), head.norm.weight, head.norm.bias))
    boxes = model.locate_boxes(fused, torch.ones(3, 4, dtype=torch.bool))
    torch.testing.assert_close(boxes, head.locate(hidden).sigmoid())
    assert boxes.shape == (3, 4)
    with pytest.raises(ValueError, match="expected a model with box_head: true"):
        tiny_model().locate_boxes(fused, torch.ones(3, 4, dtype=torch.bool))


@pytest.mark.parametrize("layout", ["padded", "packed", "grouped"])
def test_without_memory_the_cross_attention_is_skipped(layout: str) -> None:
    model = tiny_model(token_layout=layout)
    ids_BL, mask_BL = tiny_texts()
    text_BLD = model.encode_texts(ids_BL, mask_BL)
    alone = model.fuse(text_BLD, mask_BL, None)
    with torch.no_grad():
        for layer in model.fusion_encoder.stack.layers:
            layer.cross_attention.output.weight.zero_()
            layer.cross_attention.output.bias.zero_()
    torch.testing.assert_close(model.fuse(text_BLD, mask_BL, torch.randn(5, 3, 16)), alone)


def epsilons(model: CCLMModel, prefix: str) -> set[float]:
    named = (pair for pair in model.named_modules() if pair[0].startswith(prefix))
    return {module.eps for _, module in named if isinstance(module, nn.LayerNorm)}


@pytest.mark.parametrize(
    ("family", "expected"),
    [("cclm-3m", (1e-5, 1e-5, 1e-5)), ("cclm-x2vlm-base", (1e-6, 1e-5, 1e-12))],
)
def test_epsilons_of_the_published_models(family: str, expected: tuple[float, float, float]) -> None:
    """Too small for any loss to tell, so they are read off."""
    model = meta_model(FAMILIES[family])
    for prefix, eps in zip(("vision_encoder", "text_encoder", "fusion_encoder"), expected, strict=True):
        assert epsilons(model, prefix) == {eps}
    for prefix in ("masked_lm_transform", "matching_head", "box_head"):
        assert epsilons(model, prefix) == {1e-5}


@pytest.mark.parametrize("layout", list(TINY))
def test_each_parameter_is_used_where_it_lives(layout: str) -> None:
    """ZeRO-3 gathers a module's parameters in its own forward."""
    from cclm.model.configuration_cclm import CCLMConfig

    model = CCLMModel(CCLMConfig(**asdict(TINY[layout]))).train()
    called = set()
    for name, module in model.named_modules():
        if next(iter(module.parameters(recurse=False)), None) is not None:
            module.register_forward_hook(lambda *_, name=name: called.add(name))
    ids_BL = torch.tensor([[0, 5, 6, 2], [0, 7, 2, 1]])
    mask_BL, images = ids_BL != 1, torch.randn(2, 3, 32, 32)
    image_BND, text_BLD = model.encode_images(images), model.encode_texts(ids_BL, mask_BL)
    fused = model.fuse(text_BLD, mask_BL, image_BND)
    similarity = model.project_images(image_BND) @ model.project_texts(text_BLD, mask_BL).T / model.temperature()
    logits = model.decode_with(model.masked_lm_states(fused[mask_BL]), functional.linear)
    outputs = (similarity, model.match_logits(fused, mask_BL), model.locate_boxes(fused, mask_BL), logits)
    sum(output.square().sum() for output in outputs).backward()  # type: ignore[union-attr]
    holders = {name.rpartition(".")[0] for name, _ in model.named_parameters(remove_duplicate=False)}
    assert called | {""} == holders | {""}
    assert all(parameter.grad is not None for parameter in model.parameters())
