from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from cclm.errors import ConfigError
from cclm.model.hf_text import tower_config
from cclm.model.hf_vision import build_tower
from cclm.model.options import FusionOptions, ModelOptions, TextOptions, VisionOptions
from cclm.pretrained.towers import with_towers
from tests.unit.model import hf_texts
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
    with pytest.raises(ConfigError, match=r"XLM-R's or BERT's layers: xlm-roberta, .* got gpt2 with no"):
        with_towers(named(text=gpt))
    options = named(vision=folder(tmp_path / "vit", CONFIGS["vit"]))
    wrong = replace(options, vision=VisionOptions(source=options.vision.source))
    with pytest.raises(ConfigError, match=r"model.vision.source: expected architecture .hf., got 'conv_vit'"):
        with_towers(wrong)


def test_a_bert_counts_positions_from_the_first_row(tmp_path: Path) -> None:
    sizes = {"hidden_size": 48, "num_attention_heads": 6, "intermediate_size": 96, "max_position_embeddings": 34}
    text = with_towers(named(text=folder(tmp_path, transformers.BertConfig(**sizes)))).text
    assert (text.position_rule, text.position_offset, text.max_positions) == ("column", 0, 34)
    assert (text.token_type, text.norm_eps, text.num_heads) == (True, 1e-12, 6)


def hf_named(source: str, width: int = hf_texts.WIDTH, **changes: Any) -> ModelOptions:
    text = TextOptions(architecture="hf", source=source, **changes)
    return ModelOptions(width=width, vision=VisionOptions(num_heads=1), text=text)


@pytest.mark.parametrize("name", list(hf_texts.CONFIGS))
def test_a_text_tower_by_folder(tmp_path: Path, name: str) -> None:
    source = folder(tmp_path, hf_texts.CONFIGS[name])
    drawn = torch.random.get_rng_state()
    options = with_towers(replace(hf_named(source), tie_decoder=name != "electra"))
    assert torch.equal(torch.random.get_rng_state(), drawn), "trying it out draws nothing from the run's numbers"
    tower = options.text.tower
    assert options.text.source is None and tower is not None
    assert tower["model_type"] == hf_texts.CONFIGS[name].model_type
    assert not {"vocab_size", "mask_token_id", "bos_token_id"} & tower.keys()
    assert options.text.max_positions == hf_texts.LONGEST_OF.get(name, hf_texts.LONGEST)
    assert with_towers(options) is options


SMALL: dict[str, Any] = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2}
CAUSAL = {
    "gpt2": transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2),
    "llama": transformers.LlamaConfig(**SMALL, intermediate_size=24, vocab_size=100),
    "modernbert_decoder": transformers.ModernBertDecoderConfig(**SMALL, intermediate_size=24),
    "bert_decoder": transformers.BertConfig(**SMALL, intermediate_size=24, is_decoder=True),
    "clip_text": transformers.CLIPTextConfig(**SMALL, intermediate_size=24),
}


@pytest.mark.parametrize("name", list(CAUSAL))
def test_a_model_whose_tokens_see_only_what_stands_before_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="whose tokens see each other both ways") as caught:
        with_towers(hf_named(folder(tmp_path, CAUSAL[name]), width=16))
    assert CAUSAL[name].model_type in caught.value.got


@pytest.mark.parametrize(
    "config",
    [
        transformers.T5Config(d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2),
        transformers.CanineConfig(**SMALL, intermediate_size=24),
        CONFIGS["vit"],
    ],
)
def test_what_is_no_text_encoder_is_refused(tmp_path: Path, config: transformers.PreTrainedConfig) -> None:
    with pytest.raises(ConfigError, match="expected a text encoder that transformers builds without remote code"):
        with_towers(hf_named(folder(tmp_path, config), width=16))


SEES_PADDING = {
    "fnet": transformers.FNetConfig(hidden_size=16, num_hidden_layers=2, intermediate_size=24),
    "convbert": transformers.ConvBertConfig(**SMALL, intermediate_size=24, embedding_size=16),
}


@pytest.mark.parametrize("name", list(SEES_PADDING))
def test_a_model_whose_tokens_see_the_padding_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        with_towers(hf_named(folder(tmp_path, SEES_PADDING[name]), width=16))
    assert "depend on its neighbours" in caught.value.got


@pytest.mark.parametrize(
    "config",
    [
        transformers.LongformerConfig(**SMALL, intermediate_size=24, attention_window=4),
        transformers.XLNetConfig(d_model=16, n_layer=2, n_head=2, d_inner=24),
    ],
)
def test_a_model_of_another_kind_is_a_sentence(tmp_path: Path, config: transformers.PreTrainedConfig) -> None:
    with pytest.raises(ConfigError, match="expected a text encoder that transformers builds without remote code"):
        with_towers(hf_named(folder(tmp_path, config), width=16))


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_a_configuration_names_no_code_on_a_hub(key: str) -> None:
    for values, build in (
        (hf_texts.CONFIGS["modernbert"].to_dict(), tower_config),
        (CONFIGS["vit"].to_dict(), lambda values: build_tower(values).config),
    ):
        config: Any = build({**values, key: "owner/kernel", "use_kernels": True})
        assert config._attn_implementation != "owner/kernel" and not getattr(config, "use_kernels", False)


def with_remote_code(path: Path, config: transformers.PreTrainedConfig, **changes: str) -> str:
    """A folder as a model has it that came with code of its own; the code would fail."""
    source = folder(path, config)
    told = json.loads((path / "config.json").read_text())
    told |= {"auto_map": {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"}, **changes}
    (path / "config.json").write_text(json.dumps(told))
    (path / "own.py").write_text("raise SystemExit('it was run')")
    return source


def test_remote_code_is_never_run(tmp_path: Path) -> None:
    known = with_remote_code(tmp_path / "known", hf_texts.CONFIGS["eurobert"])
    tower = with_towers(hf_named(known)).text.tower
    assert tower is not None and "auto_map" not in tower
    unknown = with_remote_code(tmp_path / "unknown", hf_texts.CONFIGS["eurobert"], model_type="newer")
    with pytest.raises(ConfigError, match=r"Remote code is not run: .* update transformers"):
        with_towers(hf_named(unknown))


def test_sizes_that_do_not_fit_a_text_tower_are_refused(tmp_path: Path) -> None:
    source = folder(tmp_path, hf_texts.CONFIGS["modernbert"])
    with pytest.raises(ConfigError, match=r"Set model.width to 32, or model.tie_decoder to false"):
        with_towers(hf_named(source, width=64))
    assert with_towers(replace(hf_named(source, width=64), tie_decoder=False)).width == 64
    with pytest.raises(ConfigError, match=r"expected at most 40, as .* has them, and position_offset 0, got 48 and 0"):
        with_towers(hf_named(source, max_positions=48))
    assert with_towers(hf_named(source, max_positions=20)).text.max_positions == 20
