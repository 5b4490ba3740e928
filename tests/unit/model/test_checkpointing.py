"""What the forward pass keeps for the backward pass, by tower and mode; and which blocks are found."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable
from dataclasses import asdict, replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from cclm.model.blocks import blocks_of, checkpoint_activations
from cclm.model.configuration_cclm import CCLMConfig
from cclm.model.hf_vision import build_tower
from cclm.model.layers import forget
from cclm.model.modeling_cclm import CCLMModel
from cclm.model.options import FusionOptions, ModelOptions, TextOptions, VisionOptions
from tests.tiny_families import TINY_BEIT, TINY_SWIN
from tests.unit.model.hf_towers import CONFIGS

VISION = VisionOptions(num_layers=4, image_size=16, stem_channels=(8, 16), feedforward_width=64)
OURS = ModelOptions(
    width=32,
    vision=VISION,
    text=TextOptions(vocab_size=20, num_layers=4, feedforward_width=64, dropout=0.1, attention_dropout=0.1),
    fusion=FusionOptions(num_layers=4, feedforward_width=64, dropout=0.1),
)
SIGLIP = json.loads(CONFIGS["siglip"].to_json_string(use_diff=False))
NETWORKS = {
    "conv_vit": OURS,
    "swin": replace(TINY_SWIN, vision=replace(TINY_SWIN.vision, stage_layers=(2, 2))),
    "beit": replace(TINY_BEIT, vision=replace(TINY_BEIT.vision, num_layers=4)),
    "siglip": replace(OURS, vision=VisionOptions(architecture="hf", tower=SIGLIP, image_size=32)),
}


def network(options: ModelOptions, mode: str = "none", tower: str = "") -> CCLMModel:
    torch.manual_seed(0)
    model = CCLMModel(CCLMConfig(**asdict(options))).train()
    for name in ("vision", "text", "fusion"):
        if name == tower:
            checkpoint_activations(getattr(model, f"{name}_encoder"), mode)
    return model


def run(model: CCLMModel, tower: str) -> Tensor:
    """One tower's output."""
    torch.manual_seed(1)
    texts = torch.randint(3, 20, (6, 8)), torch.arange(8)[None] < torch.tensor([[8], [7], [8], [3], [8], [5]])
    if tower == "vision":
        return model.encode_images(torch.randn(6, 3, *[model.config.vision["image_size"]] * 2))
    if tower == "text":
        return model.encode_texts(*texts)
    return model.fuse(torch.randn(6, 8, model.config.width), texts[1], torch.randn(6, 5, model.config.width))


def kept_bytes(function: Callable[[], Tensor]) -> int:
    """What autograd saves in a forward pass, parameters included, each storage once."""
    storages = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor  # kept alive, so that no address is taken twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function()
    return sum(tensor.untyped_storage().nbytes() for tensor in storages.values())


@pytest.mark.parametrize("tower", ["vision", "text", "fusion"])
@pytest.mark.parametrize("kind", NETWORKS)
def test_full_keeps_less_than_selective_and_that_less_than_everything(kind: str, tower: str) -> None:
    if tower != "vision" and kind != "conv_vit":
        pytest.skip("the same text side")
    kept = {}
    modes = ("none", "selective", "full") if kind == "siglip" else ("none", "elementwise", "selective", "full")
    for mode in modes:
        model = network(NETWORKS[kind], mode, tower)
        kept[mode] = kept_bytes(lambda model=model: run(model, tower))
    assert kept["full"] < 0.5 * kept["none"]
    assert kept["full"] < kept["selective"] < 0.8 * kept["none"]
    assert kept["selective"] < kept.get("elementwise", kept["none"])
    assert "elementwise" not in kept or kept["elementwise"] < 0.95 * kept["none"]


@pytest.mark.parametrize("mode", ["elementwise", "selective", "full"])
def test_a_dropped_activation_comes_back_bit_by_bit(mode: str) -> None:
    gradients = []
    for one in ("none", mode):
        model = network(OURS, one, "text")
        run(model, "text").square().sum().backward()
        gradients.append([parameter.grad for parameter in model.text_encoder.parameters()])
    assert all(torch.equal(ours, kept) for ours, kept in zip(*gradients, strict=True))


def test_without_gradients_nothing_is_checkpointed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network(OURS, "full", "text")
    monkeypatch.setattr("cclm.model.blocks.checkpoint", None)
    with torch.no_grad():
        assert run(model.eval(), "text").shape == (6, 8, 32)


@pytest.mark.parametrize("name", CONFIGS)
def test_blocks_of_the_transformers_library(name: str) -> None:
    blocks = blocks_of(build_tower(json.loads(CONFIGS[name].to_json_string(use_diff=False))))
    assert len(blocks) == (4 if "convnext" in name else 2)
    assert len({type(block) for block in blocks}) == 1


def test_an_encoder_without_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match="activation_checkpointing"):
        checkpoint_activations(nn.Linear(2, 2), "full")
    checkpoint_activations(nn.Linear(2, 2), "none")
    checkpoint_activations(nn.Linear(2, 2), "elementwise")


def test_values_that_nobody_goes_back_to_stay() -> None:
    value = torch.randn(4)
    forget(value, functional.gelu, value, until=torch.randn(4))
    assert value.untyped_storage().nbytes() == 16


def test_what_was_computed_again_goes_although_the_graph_stays() -> None:
    wide = torch.randn(4, requires_grad=True) * 1.0
    active = functional.gelu(wide)
    total = active.square().sum()
    gone = [weakref.ref(value.untyped_storage()) for value in (wide, active)]
    forget(active, functional.gelu, wide, until=total)
    del wide, active
    total.backward()  # type: ignore[no-untyped-call]
    assert [reference() for reference in gone] == [None, None]
