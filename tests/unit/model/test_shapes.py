"""Every annotated shape of the model holds on a whole step, and the annotations notice what is wrong."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from importlib import import_module
from types import ModuleType

import pytest
import torch
from jaxtyping import TypeCheckError
from torch.nn import functional

from tests.kinds import KINDS
from tests.tiny_families import TINY
from tests.unit.model.tiny import tiny_config, tiny_images, tiny_texts
from tests.unit.model.typed import typed_modules


@pytest.fixture(scope="module")
def modeling() -> Iterator[ModuleType]:
    with typed_modules(["cclm.model.modeling_cclm"]) as (module,):
        yield module


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["padded", "packed", "grouped"])
def test_all_annotations_hold_on_a_step(modeling: ModuleType, layout: str) -> None:
    config = sys.modules["cclm.model.configuration_cclm"].CCLMConfig(
        **tiny_config(token_layout=layout, fusion={"null_memory": True}, text={"pooling": "mean_first"}).to_dict()
    )
    model = modeling.CCLMModel(config)
    ids_BL, mask_BL = tiny_texts()
    model(tiny_images(), ids_BL, mask_BL).logits_per_image.sum().backward()
    image_BND, text_BLD = model.encode_images(tiny_images()), model.encode_texts(ids_BL, mask_BL)
    packing = sys.modules["cclm.model.packing"]
    parts = [(image_BND, torch.ones(5, 5, dtype=torch.bool)), (text_BLD, mask_BL)]
    memory_BND, memory_mask_BN = packing.concatenate_padded(parts)
    query, query_mask = torch.cat([text_BLD] * 2), torch.cat([mask_BL] * 2)
    fused_BLD = model.fuse(query, query_mask, memory_BND, memory_mask_BN)
    hidden_TD = model.masked_lm_states(fused_BLD[query_mask])
    loss = model.decode_with(hidden_TD, functional.linear).mean() + model.match_logits(fused_BLD, query_mask).mean()
    (loss + model.score(tiny_images(), ids_BL, mask_BL).mean()).backward()


@pytest.mark.parametrize("layout", list(TINY))
def test_all_annotations_hold_for_the_published_layouts(modeling: ModuleType, layout: str) -> None:
    values = {**asdict(TINY[layout]), "token_layout": "grouped"}
    model = modeling.CCLMModel(sys.modules["cclm.model.configuration_cclm"].CCLMConfig(**values)).train()
    ids_BL = torch.tensor([[0, 5, 6, 2], [0, 7, 2, 1]])
    mask_BL = ids_BL != 1
    image_BND, text_BLD = model.encode_images(torch.randn(2, 3, 32, 32)), model.encode_texts(ids_BL, mask_BL)
    region_mask = torch.ones(3, image_BND.shape[1], dtype=torch.bool)
    region_RND = model.pool_regions(image_BND, torch.tensor([0, 1, 1]), region_mask)
    rows = torch.tensor([0, 1, 1])
    fused = model.fuse(text_BLD[rows], mask_BL[rows], region_RND, region_mask)
    loss = model.locate_boxes(fused, mask_BL[rows]).sum() + model.fuse(text_BLD, mask_BL, None).sum()
    loss.backward()


def test_all_annotations_hold_for_the_finetuned_parts(modeling: ModuleType) -> None:
    names = ["answer_decoder", "encoders", "configuration_cclm"]
    answers, encoders, configuration = (import_module(f"cclm.model.{name}") for name in names)
    options = configuration.CCLMConfig(**asdict(TINY["swin"])).options()
    mask_BL = torch.tensor([[True, True, True], [True, False, False]])
    states = encoders.FusionEncoder(16, replace(options.fusion, num_memories=2), "auto")(
        torch.randn(2, 3, 16), mask_BL, torch.randn(2, 4, 16), torch.randn(2, 5, 16)
    )
    answers.AnswerDecoder(options)(torch.tensor([[0, 2], [0, 1]]), mask_BL[:, :2], states, mask_BL).sum().backward()


def test_wrong_shapes_and_types_are_noticed(modeling: ModuleType) -> None:
    config = sys.modules["cclm.model.configuration_cclm"].CCLMConfig(**tiny_config().to_dict())
    model = modeling.CCLMModel(config)
    ids_BL, mask_BL = tiny_texts()
    text_BLD = model.encode_texts(ids_BL, mask_BL)
    with pytest.raises(TypeCheckError):
        model.encode_texts(ids_BL, mask_BL[:3])
    with pytest.raises(TypeCheckError):
        model.encode_texts(ids_BL, mask_BL.long())
    with pytest.raises(TypeCheckError):
        model.encode_images(tiny_images()[:, :2])
    with pytest.raises(TypeCheckError):
        model.fuse(text_BLD, mask_BL, torch.zeros(4, 3, 16))


@pytest.mark.slow
def test_the_plain_modules_are_untouched() -> None:
    from cclm.model.modeling_cclm import CCLMModel

    with typed_modules(["cclm.model.modeling_cclm"]) as (module,):
        assert module.CCLMModel is not CCLMModel
    assert sys.modules["cclm.model.modeling_cclm"].CCLMModel is CCLMModel
    assert sys.modules["cclm"].model is sys.modules["cclm.model"]


def test_annotations_hold_in_what_people_call(modeling: ModuleType) -> None:
    make_config = sys.modules["cclm.model.configuration_cclm"].CCLMConfig
    model, of_pairs = (
        modeling.CCLMModel(make_config(**asdict(KINDS[kind]))).eval() for kind in ("swin_regions", "nlvr_pairs")
    )
    ids_BL, mask_BL = tiny_texts()
    ids_BL, images = ids_BL % 30, torch.randn(10, 3, 32, 32)
    of_pairs.score(images.view(5, 2, 3, 32, 32), ids_BL, mask_BL)
    model.score_all(images, ids_BL, mask_BL)
    model.rerank(images, ids_BL, mask_BL)
    model.fill_mask(ids_BL[:1, :1], pixel_values=images[:1], mask_token_id=int(ids_BL[0, 0]))
    model.locate(images[:5], ids_BL, mask_BL)
    with pytest.raises(TypeCheckError):
        model.locate(images[0], ids_BL, mask_BL)
