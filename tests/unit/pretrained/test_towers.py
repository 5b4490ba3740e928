from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import transformers

from cclm.errors import ConfigError
from cclm.model.options import FusionOptions, ModelOptions, TextOptions, VisionOptions
from cclm.pretrained.towers import with_towers
from tests.unit.model.hf_towers import CONFIGS, MLP

TEXT = transformers.XLMRobertaConfig(
    hidden_size=48,
    num_hidden_layers=4,
    num_attention_heads=6,
    intermediate_size=96,
    vocab_size=300,
    max_position_embeddings=34,
    layer_norm_eps=1e-6,
    pad_token_id=1,
    type_vocab_size=1,
)


def folder(path: Path, config: transformers.PreTrainedConfig) -> str:
    config.save_pretrained(path)
    return str(path)


def named(vision: str | None = None, text: str | None = None, **changes: object) -> ModelOptions:
    tower = VisionOptions(architecture="hf", source=vision) if vision else VisionOptions(num_heads=1)
    return ModelOptions(
        vision=tower, text=TextOptions(source=text, num_layers=3), fusion=FusionOptions(num_layers=5), **changes
    )


def test_options_without_sources_stay() -> None:
    options = ModelOptions()
    assert with_towers(options) is options


def test_an_image_model_by_folder(tmp_path: Path) -> None:
    options = with_towers(named(vision=folder(tmp_path, CONFIGS["vit"])))
    assert options.vision.source is None
    assert options.vision.tower is not None
    assert options.vision.tower["model_type"] == "vit"
    assert "transformers_version" not in options.vision.tower
    assert (options.vision.image_size, options.vision.grid_side) == (32, 4)
    assert with_towers(options) is options


def test_the_image_half_of_a_two_tower_model(tmp_path: Path) -> None:
    config = transformers.SiglipConfig(vision_config={**MLP, "image_size": 48}, text_config={"hidden_size": 8})
    options = with_towers(named(vision=folder(tmp_path, config)))
    assert options.vision.tower is not None
    assert options.vision.tower["model_type"] == "siglip_vision_model"
    assert options.vision.image_size == 48


def test_a_chosen_image_size_stays(tmp_path: Path) -> None:
    options = named(vision=folder(tmp_path, CONFIGS["dinov2"]))
    options = replace(options, vision=replace(options.vision, image_size=64))
    assert with_towers(options).vision.grid_side == 8


def test_a_text_model_gives_its_sizes_and_keeps_the_number_of_layers(tmp_path: Path) -> None:
    options = with_towers(named(text=folder(tmp_path, TEXT)))
    assert options.width == 48
    assert (options.text.num_layers, options.fusion.num_layers) == (3, 5)
    for stack in (options.text, options.fusion):
        assert (stack.num_heads, stack.feedforward_width, stack.norm_position) == (6, 96, "post")
        assert stack.norm_eps == 1e-6
    assert (options.text.position_rule, options.text.position_offset) == ("ids", 2)
    assert (options.text.max_positions, options.text.token_type, options.text.source) == (34, True, None)


def test_sizes_are_checked_against_the_width_of_the_source(tmp_path: Path) -> None:
    """And not before it is read: 6 heads do not divide the default width."""
    options = replace(named(text=folder(tmp_path, TEXT)), vision=VisionOptions(num_heads=6))
    assert with_towers(options).width == 48
    with pytest.raises(ConfigError, match=r"vision.num_heads: expected a divisor of width 48, got 5"):
        with_towers(replace(options, vision=VisionOptions(num_heads=5)))


def test_a_source_that_fills_the_text_encoder_alone_leaves_the_fusion_encoder_its_sizes(tmp_path: Path) -> None:
    own = FusionOptions(num_layers=1, num_heads=3, feedforward_width=40)
    options = replace(named(text=folder(tmp_path, TEXT)), fusion=own)
    assert with_towers(options, "text").fusion == own
    with pytest.raises(ConfigError, match=r"model.fusion.num_heads: expected 6"):
        with_towers(options, "text_and_fusion")


def test_a_value_that_contradicts_the_source_is_refused(tmp_path: Path) -> None:
    source = folder(tmp_path, TEXT)
    with pytest.raises(ConfigError, match=r"model.width: expected 48, as .* has it, got 64. Leave it out"):
        with_towers(named(text=source, width=64))
    options = named(text=source)
    with pytest.raises(ConfigError, match=r"model.fusion.num_heads: expected 6, as .* has it, got 2"):
        with_towers(replace(options, fusion=FusionOptions(num_heads=2)))
    assert with_towers(named(text=source, width=48)).width == 48


def test_other_sources_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"expected a Hugging Face model: its name, or a folder with config.json"):
        with_towers(named(vision=str(tmp_path / "nothing")))
    gpt = folder(tmp_path / "gpt", transformers.GPT2Config())
    with pytest.raises(ConfigError, match=r"expected a text model with XLM-R's layers: xlm-roberta, .* got gpt2 with"):
        with_towers(named(text=gpt))
    types = folder(tmp_path / "types", transformers.XLMRobertaConfig(type_vocab_size=2))
    with pytest.raises(ConfigError, match=r"expected one token type, as XLM-R has, got 2"):
        with_towers(named(text=types))
    options = named(vision=folder(tmp_path / "vit", CONFIGS["vit"]))
    wrong = replace(options, vision=VisionOptions(source=options.vision.source))
    with pytest.raises(ConfigError, match=r"model.vision.source: expected architecture .hf., got 'conv_vit'"):
        with_towers(wrong)
