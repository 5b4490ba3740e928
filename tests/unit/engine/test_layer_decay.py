from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from cclm.engine.optimizer import heights, parameter_groups
from cclm.engine.options import OptimizerConfig
from cclm.errors import ConfigError
from cclm.model.modeling_cclm import CCLMModel
from tests.unit.model.hf_texts import text_options
from tests.unit.model.tiny import tiny_config

BEIT: dict[str, Any] = {"architecture": "beit", "patch_size": 4, "num_heads": 2, "num_layers": 3}
SWIN: dict[str, Any] = {"architecture": "swin", "patch_size": 2, "window": 2, "num_heads": 2}
SWIN |= {"stage_layers": (2, 1), "stage_heads": (1, 2)}


def multipliers(model: nn.Module, **options: Any) -> dict[str, float]:
    config = OptimizerConfig(total_steps=10, **options)
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, config)
    assert len({group["name"] for group in groups}) == len(groups), "each group has a name of its own in the log"
    return {name_of[id(parameter)]: group["multiplier"] for group in groups for parameter in group["params"]}


def published_number(name: str, num_layers: int) -> int:
    """BEiT's `get_num_layer_for_vit` by our names: embeddings 0, block n is n + 1, all else num_layers + 1."""
    if name.startswith(("vision_encoder.class_token", "vision_encoder.patches")):
        return 0
    if name.startswith("vision_encoder.blocks."):
        return int(name.split(".")[2]) + 1
    return num_layers + 1


def test_a_beit_learns_as_published() -> None:
    model = CCLMModel(tiny_config(vision=BEIT))
    rates = multipliers(model, layer_decay={"vision_encoder": 0.5}, module_multipliers={"vision_encoder": 3.0})
    assert {published_number(name, 3) for name in rates} == {0, 1, 2, 3, 4}
    for name, rate in rates.items():
        scale = 0.5 ** (3 + 1 - published_number(name, 3))
        assert rate == pytest.approx(scale * (3.0 if name.startswith("vision_encoder") else 1.0)), name


def test_blocks_of_stages_are_counted_through() -> None:
    model = CCLMModel(tiny_config(vision=SWIN))
    rates = multipliers(model, layer_decay={"vision_encoder": 0.5, "text_encoder": 0.9})
    assert rates["vision_encoder.patches.project.weight"] == 0.5**4
    blocks = [f"vision_encoder.stages.{stage}.blocks.{number}" for stage, number in ((0, 0), (0, 1), (1, 0))]
    for power, block in zip((3, 2, 1), blocks, strict=True):
        assert {rate for name, rate in rates.items() if name.startswith(block)} == {0.5**power}
    assert rates["vision_encoder.stages.0.merge.reduce.weight"] == 0.5**2
    assert rates["vision_encoder.final_norm.weight"] == 1.0
    assert rates["text_encoder.embeddings.words.weight"] == pytest.approx(0.9 ** (model.config.text["num_layers"] + 1))
    assert {rate for name, rate in rates.items() if name.startswith("fusion_encoder")} == {1.0}


def test_a_text_tower_of_transformers_is_counted_through() -> None:
    model = CCLMModel(tiny_config(width=32, text=text_options("modernbert")))
    rates = multipliers(model, layer_decay={"text_encoder": 0.5})
    assert rates["text_encoder.embeddings.words.weight"] == rates["text_encoder.tower.embeddings.norm.weight"] == 0.5**4
    for number in range(3):
        layer = f"text_encoder.tower.layers.{number}."
        assert {rate for name, rate in rates.items() if name.startswith(layer)} == {0.5 ** (3 - number)}
    assert rates["text_encoder.tower.final_norm.weight"] == 1.0


def test_groups_have_names_and_weight_decay_of_their_own() -> None:
    model = CCLMModel(tiny_config(vision=BEIT))
    config = OptimizerConfig(
        total_steps=10,
        layer_decay={"vision_encoder": 0.5},
        module_multipliers={"vision_encoder": 2.0, "vision_encoder.blocks.1": 4.0},
    )
    groups = {group["name"]: group for group in parameter_groups(model, config)}
    assert groups["vision_encoder@1/decay"]["multiplier"] == 1.0
    assert groups["vision_encoder.blocks.1/vision_encoder@2/no_decay"]["multiplier"] == 1.0
    assert groups["vision_encoder.blocks.1/vision_encoder@2/no_decay"]["weight_decay"] == 0.0
    assert {"decay", "no_decay"} < groups.keys()


@pytest.mark.parametrize("name", ["vision_encode", "vision_encoder.patches", "*"])
def test_only_towers_with_blocks_can_be_named(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        heights(CCLMModel(tiny_config(vision=BEIT)), {name: 0.5})
    assert caught.value.where == "optimizer.layer_decay"
    if name != "*":
        assert "nearest: 'vision_encoder'" in caught.value.got
