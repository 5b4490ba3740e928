"""Recipes: every shipped one loads; every mistake gets its own sentence, all at once."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
import transformers
import yaml

from cclm.config import RunConfig
from cclm.data.config import validate
from cclm.errors import ConfigError
from pretrain.recipe import RECIPES, known_keys, read_config
from tests.tiny_run import recipe, write_recipe
from tests.unit.model.hf_towers import CONFIGS

SHIPPED = sorted(RECIPES.glob("*.yaml"))


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    return write_recipe(tmp_path / "tiny.yaml", recipe(tmp_path, tmp_path / "run"))


def refusal(*arguments: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read_config(arguments)
    return str(caught.value)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_recipes_load_by_name(path: Path) -> None:
    config = read_config(["--recipe", path.stem])
    validate(config.data, world_size=2)
    assert config.steps > 0
    header = path.read_text(encoding="utf-8").splitlines()
    assert [line.split(":")[0] for line in header[:4]] == ["# Command", "# Hardware", "# Time", "# Expected"]


def test_override_wins_over_the_file(settings: Path) -> None:
    config = read_config(["--recipe", str(settings), "--optimizer.total_steps", "7", "--model.text.num_layers=3"])
    assert (config.steps, config.model.text.num_layers, config.model.vision.num_layers) == (7, 3, 1)
    assert config.data.image_text is not None
    assert config.data.image_text.transform.size == 16


def test_unknown_keys_are_named_all_at_once_with_the_nearest_right_one(settings: Path) -> None:
    content = yaml.safe_load(settings.read_text())
    content["optimizer"]["learning_rat"] = 1.0
    content["objectivs"] = {"itm_weight": 2.0}
    write_recipe(settings, content)
    text = refusal("--recipe", str(settings), "--modle.width", "8")
    assert "optimizer.learning_rat" in text
    assert "did you mean optimizer.learning_rate?" in text
    assert "objectivs" in text
    assert "modle.width (command line); did you mean model.width?" in text


def test_a_view_can_be_switched_off(settings: Path) -> None:
    assert read_config(["--recipe", str(settings), "--data.text_pair", "null"]).data.text_pair is None


def test_wrong_type(settings: Path) -> None:
    assert "total_steps" in refusal("--recipe", str(settings), "--optimizer.total_steps", "many")


def test_all_wrong_values_come_together_from_the_file_and_the_command_line(settings: Path) -> None:
    content = yaml.safe_load(settings.read_text())
    content["seed"] = "abc"
    content["data"]["image_text"]["batch_size"] = "many"
    write_recipe(settings, content)
    text = refusal("--recipe", str(settings), "--optimizer.total_steps", "ten", "--data.num_workers=x")
    assert "seed: expected int, got abc" in text
    assert "data.image_text.batch_size: expected int, got many" in text
    assert "optimizer.total_steps: expected int, got ten" in text
    assert "data.num_workers: expected int, got x" in text
    assert ".." not in text
    assert yaml.safe_load(settings.read_text()) == content  # the user's file is only read


def test_broken_rules_of_all_parts_come_together(settings: Path) -> None:
    wrong = ("--optimizer.learning_rate", "-1", "--model.vision.num_heads", "3", "--data.image_text.batch_size", "15")
    text = refusal("--recipe", str(settings), *wrong)
    assert "learning_rate=-1.0 (must be > 0)" in text
    assert "vision.num_heads: expected a divisor of width" in text
    assert "image_text.batch_size 15 is no multiple of negative_group" in text


def test_wrong_word(settings: Path) -> None:
    assert "norm_position" in refusal("--recipe", str(settings), "--model.text.norm_position", "middle")


def test_contradictions_come_together(settings: Path) -> None:
    text = refusal(*("--recipe", str(settings), "--engine", "plain", "--precision", "bf16", "--checkpoint.keep", "0"))
    assert "engine plain runs in fp32" in text
    assert "checkpoint.keep must be at least 1" in text


def test_unknown_recipe_lists_the_shipped_ones() -> None:
    text = refusal("--recipe", "demmo")
    assert "'demmo'" in text
    assert "demo" in text.split("got")[0]


def test_recipe_that_is_no_mapping(tmp_path: Path) -> None:
    path = tmp_path / "list.yaml"
    path.write_text("- a\n- b\n", encoding="utf-8")
    assert "a YAML mapping" in refusal("--recipe", str(path))


@pytest.mark.parametrize("content", [b"a: [1, 2", b"seed: \xff\xfe"])
def test_recipe_that_cannot_be_read(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    assert str(path) in refusal("--recipe", str(path))


def test_folder_instead_of_a_recipe(tmp_path: Path) -> None:
    assert "or one of" in refusal("--recipe", str(tmp_path))


def test_sizes_of_data_and_network_must_fit(settings: Path) -> None:
    text = refusal(
        *("--recipe", str(settings), "--model.vision.image_size", "32", "--data.text_pair.max_tokens", "40"),
        *("--data.image_text.negative_group", "7", "--objectives.itm_weight", "-1"),
    )
    assert "transform.size 16 is not model.vision.image_size 32" in text
    assert "data.text_pair.max_tokens 40 exceeds the 8 positions" in text
    assert "multiple of negative_group 7" in text
    assert "itm_weight" in text
    padded = refusal("--recipe", str(settings), "--data.pad_multiple", "16")
    assert "data.image_text: 16 positions with data.pad_multiple, model.text has 8" in padded


def test_a_mix_is_read_from_yaml(settings: Path) -> None:
    content = yaml.safe_load(settings.read_text(encoding="utf-8"))
    stages = [{"start_step": 5, "weights": [2.0]}, {"start_step": 9, "language_weights": {"de": 1.0}}]
    mix = {"temperature": 3.3, "max_epochs": [None], "language_weights": {"en": 2.0, "de": 1.0}, "schedule": stages}
    content["data"]["image_text"]["mix"] = mix
    settings.write_text(yaml.safe_dump(content), encoding="utf-8")
    images = read_config(["--recipe", str(settings)]).data.image_text
    assert images is not None and images.mix.max_epochs == (None,)
    assert images.mix.schedule[0].weights == (2.0,) and images.mix.schedule[1].language_weights == {"de": 1.0}
    assert images.mix.language_weights == {"en": 2.0, "de": 1.0}


def test_ramp_that_ends_before_it_starts(settings: Path) -> None:
    assert "hardness_start_step 9" in refusal("--recipe", str(settings), "--objectives.hardness_start_step", "9")


def test_known_keys_are_the_whole_tree() -> None:
    known = set(known_keys(RunConfig))
    assert {item.name for item in fields(RunConfig)} < known
    assert {"data.image_text.transform.size", "model.fusion.num_layers", "optimizer.betas"} <= known
    assert not any(key.startswith("_") for key in known)


def test_a_named_tower_brings_its_pixel_values(settings: Path, tmp_path: Path) -> None:
    tower = tmp_path / "tower"
    CONFIGS["siglip"].save_pretrained(tower)
    transformers.SiglipImageProcessor().save_pretrained(tower)
    content = yaml.safe_load(settings.read_text(encoding="utf-8"))
    content["model"]["vision"] = {"architecture": "hf", "source": str(tower), "image_size": 16}
    content["data"]["image_text"]["transform"] |= {"std": [0.2, 0.3, 0.4]}
    write_recipe(settings, content)
    images = read_config(["--recipe", str(settings)]).data.image_text
    assert images is not None
    assert (images.transform.mean, images.transform.std) == ((0.5, 0.5, 0.5), (0.2, 0.3, 0.4))
