from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from cclm.model.configuration_cclm import CCLMConfig
from cclm.model.options import ModelOptions, TextOptions, VisionOptions
from tests.unit.model.tiny import tiny_config


def test_options_and_config_are_two_forms_of_the_same() -> None:
    options = ModelOptions(
        width=64, vision=VisionOptions(stem_channels=(8, 16)), text=TextOptions(num_layers=3, pooling="mean_first")
    )
    config = CCLMConfig(**asdict(options))
    assert config.options() == options
    assert config.text["num_layers"] == 3
    assert config.vision["stem_channels"] == [8, 16]


def test_json_round_trip(tmp_path: Path) -> None:
    config = tiny_config(tie_decoder=False, text={"pad_token_id": 3})
    config.save_pretrained(tmp_path)
    loaded = CCLMConfig.from_pretrained(tmp_path)
    assert loaded.options() == config.options()
    assert loaded.to_dict()["vision"] == config.to_dict()["vision"]
    assert loaded.tie_word_embeddings is False
    assert loaded.pad_token_id == 3


def test_the_outer_flags_follow_the_options() -> None:
    assert tiny_config().tie_word_embeddings is True
    assert CCLMConfig(tie_decoder=False, tie_word_embeddings=True).tie_word_embeddings is False


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"text": {"layers": 2}}, "text: expected only .*num_layers.*, got layers. Remove or rename"),
        ({"text": {"pooling": "max"}}, "pooling: expected one of cls, mean, mean_first, got 'max'"),
        ({"fusion": {"norm_position": "sandwich"}}, "norm_position: expected one of pre, post, got 'sandwich'"),
        ({"vision": {"num_heads": 3}}, "vision.num_heads: expected a divisor of width 16, got 3"),
        ({"vision": {"image_size": 10}}, "vision.image_size: expected a multiple of 4 .* got 10"),
        ({"width": 0}, "width: expected whole numbers of at least 1, got 0"),
        ({"vision": {"stem_channels": [8, -8]}}, r"stem_channels: expected whole numbers of at least 1, got \(8, -8\)"),
        ({"fusion": {"num_layers": -1}}, "num_layers: expected whole numbers of at least 0, got -1"),
        ({"text": {"dropout": 1.5}}, "dropout: expected a number of at least 0 and below 1, got 1.5"),
        ({"vision": {"drop_path": -0.1}}, "drop_path: expected a number of at least 0 and below 1, got -0.1"),
        ({"initial_temperature": 0.7}, "initial_temperature: expected 0 < temperature_min <= initial_temperature"),
        ({"token_layout": "ragged"}, "token_layout: expected one of auto, grouped, packed, padded, got 'ragged'"),
    ],
)
def test_a_wrong_config_is_a_sentence(changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        tiny_config(**changes)
