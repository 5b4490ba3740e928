"""Dropped patches: the draw, that they are not computed, and that the kept ones keep their places."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from cclm.model.configuration_cclm import CCLMConfig
from cclm.model.kernels import Kernels, use_kernels
from cclm.model.modeling_cclm import CCLMModel
from cclm.model.options import DROPS_PATCHES, ModelOptions, VisionOptions
from cclm.model.vision import kept_patches, mix64
from tests.tiny_families import TINY_BEIT, TINY_SWIN
from tests.unit.model.hf_towers import CONFIGS

OWN = {
    "conv_vit": ModelOptions(width=32, vision=VisionOptions(num_layers=2, stem_channels=(8, 16, 24))),
    "beit": TINY_BEIT,
}
HF = [name for name, config in CONFIGS.items() if config.model_type in DROPS_PATCHES]
SIDE, GRID = 32, 4
KEYS = torch.tensor([5, -7, 1 << 60])


def build(name: str, share: float = 0.5) -> CCLMModel:
    if name in OWN:
        options = OWN[name]
    else:
        values = json.loads(CONFIGS[name].to_json_string(use_diff=False))
        vision = VisionOptions(architecture="hf", tower={**values, "attention_dropout": 0.0}, image_size=SIDE)
        options = ModelOptions(width=32, vision=vision)
    torch.manual_seed(0)
    vision = replace(options.vision, keep_patches=share, drop_path=0.0)
    model = CCLMModel(CCLMConfig(**asdict(replace(options, vision=vision))))
    for parameter in model.parameters():  # tables of biases and positions start too small to be seen
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def pictures() -> Tensor:
    return torch.randn(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def test_the_draw_is_a_share_of_different_patches_each_as_often_as_the_others() -> None:
    kept_BK = kept_patches(torch.arange(4000), 16, 0.3)
    assert kept_BK.shape == (4000, 5)
    assert (kept_BK.diff(dim=1) > 0).all() and kept_BK.min() == 0 and kept_BK.max() == 15
    often_P = kept_BK.flatten().bincount(minlength=16) / 4000
    assert (often_P - 5 / 16).abs().max() < 0.03  # four standard deviations
    together = (kept_BK == 0).any(1) & (kept_BK == 1).any(1)
    assert abs(float(together.float().mean()) - 5 / 16 * 4 / 15) < 0.02


def test_the_draw_depends_on_the_key_alone() -> None:
    keys = torch.arange(50) * 12345
    whole = kept_patches(keys, 49, 0.5)
    assert torch.equal(torch.cat([kept_patches(part, 49, 0.5) for part in keys.split(7)]), whole)
    assert len({tuple(row) for row in whole.tolist()}) == 50
    assert kept_patches(keys, 4, 0.01).shape == (50, 1)
    assert torch.equal(kept_patches(keys[:1], 4, 1.0), torch.arange(4)[None])


def test_the_words_are_those_of_splitmix64() -> None:
    """First outputs for seed 0, as published with the generator."""
    first = torch.tensor([0x9E3779B97F4A7C15 - (1 << 64)])
    assert [word % (1 << 64) for word in mix64(torch.cat([first, first * 2])).tolist()] == [
        0xE220A8397B1DCDAF,
        0x6E789E6AA1B965F4,
    ]


@pytest.mark.parametrize("name", [*OWN, *HF])
def test_a_step_computes_the_kept_patches_only(name: str) -> None:
    model, images = build(name).train(), pictures()
    kept = kept_patches(KEYS, GRID**2, 0.5)
    tokens = model.encode_images(images, KEYS)
    assert tokens.shape == (3, 1 + 8, model.config.width)
    assert model.encode_images(images).shape == (3, 1 + 16, model.config.width), "no key, no draw"
    if name != "conv_vit":  # its stem looks over the borders of patches
        changed = images.unflatten(2, (GRID, -1)).unflatten(4, (GRID, -1)).clone()
        for image, patches in zip(changed, kept, strict=True):
            for patch in set(range(GRID**2)) - set(patches.tolist()):
                image[:, patch // GRID, :, patch % GRID] = 100.0
        torch.testing.assert_close(model.encode_images(changed.reshape(images.shape), KEYS), tokens)
    tokens.square().sum().backward()
    assert all(value.grad is not None for value in model.vision_encoder.parameters() if value.requires_grad)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*OWN, *HF])
def test_evaluation_sees_all_patches(name: str) -> None:
    model, images = build(name).eval(), pictures()
    assert torch.equal(model.encode_images(images, KEYS), model.encode_images(images))
    assert torch.equal(build(name, share=1.0).train().encode_images(images, KEYS), model.train().encode_images(images))


@pytest.mark.parametrize("name", [*OWN, "siglip", "vit"])
def test_kept_patches_keep_their_places(name: str) -> None:
    """The same states as of the whole grid, where attention is told not to look at the others."""
    images, kept = pictures(), kept_patches(KEYS, GRID**2, 0.5)
    dropping, whole = build(name).train(), build(name, share=1.0).train()
    expected_BKD = dropping.encode_images(images, KEYS)[:, 1:]
    seen_BL = torch.zeros(3, GRID**2, dtype=torch.bool).scatter(1, kept, True)

    def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float = 0.0) -> Tensor:
        all_BL = functional.pad(seen_BL, (key.shape[2] - GRID**2, 0), value=True)
        hidden = torch.zeros(all_BL.shape).masked_fill(~all_BL, -torch.inf)[:, None, None]
        return functional.scaled_dot_product_attention(query, key, value, hidden if mask is None else mask + hidden)

    if name in OWN:
        use_kernels(whole, Kernels(attention=attention))
        found_BPD = whole.encode_images(images)[:, 1:]
    else:
        found_BPD = _with_library_attention(whole, images, attention)
    torch.testing.assert_close(found_BPD.gather(1, kept[:, :, None].expand_as(expected_BKD)), expected_BKD)


def _with_library_attention(model: CCLMModel, images: Tensor, attention: Any) -> Tensor:
    from transformers import AttentionInterface

    def as_library(_module: Any, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
        return attention(query, key, value, None).transpose(1, 2), None

    AttentionInterface.register("hides_patches", as_library)
    model.vision_encoder.tower.set_attn_implementation("hides_patches")
    return model.encode_images(images)[:, 1:]


@pytest.mark.parametrize(
    "vision",
    [
        replace(TINY_SWIN.vision),
        *(
            VisionOptions(architecture="hf", tower=json.loads(CONFIGS[name].to_json_string(use_diff=False)))
            for name in ("swinv2", "dinov3", "beit", "convnext")
        ),
    ],
)
def test_towers_that_need_the_whole_grid_are_refused(vision: VisionOptions) -> None:
    with pytest.raises(ValueError, match="keep_patches: expected 1"):
        ModelOptions(width=16, vision=replace(vision, keep_patches=0.5))


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5])
def test_what_is_no_share_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="keep_patches: expected a share"):
        ModelOptions(vision=VisionOptions(keep_patches=share))
