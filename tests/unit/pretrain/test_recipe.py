"""Recipes: every shipped one loads; every mistake gets its own sentence, all at once."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from cclm.config import RunConfig, validate_ranks
from cclm.errors import ConfigError, Problem
from cclm.files.reading import to_plain
from cclm.files.typed import known_keys
from cclm.recipe.read import RECIPES, kinds_of, read_recipe
from cclm.views.table import VIEWS
from tests.tiny_run import recipe, write_recipe

SHIPPED = sorted(RECIPES.glob("*.yaml"))


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    return write_recipe(tmp_path / "tiny.yaml", recipe(tmp_path, tmp_path / "run"))


def refusal(*arguments: str) -> dict[str, Problem]:
    """Every problem by its key."""
    with pytest.raises(ConfigError) as caught:
        read_recipe(arguments)
    return {problem.key: problem for problem in caught.value.problems}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_recipes_load_by_name(path: Path) -> None:
    config = read_recipe(["--recipe", path.stem])
    validate_ranks(config, 2)
    assert config.steps > 0
    header = path.read_text(encoding="utf-8").splitlines()
    assert [line.split(":")[0] for line in header[:4]] == ["# Command", "# Hardware", "# Time", "# Expected"]


def test_override_wins_over_the_file(settings: Path) -> None:
    config = read_recipe(["--recipe", str(settings), "--optimizer.total_steps", "7", "--model.text.num_layers=3"])
    assert (config.steps, config.model.text.num_layers, config.model.vision.num_layers) == (7, 3, 1)
    assert to_plain(config.views["image_text"])["transform"]["size"] == 16


def test_unknown_keys_are_named_all_at_once_with_the_nearest_right_one(settings: Path) -> None:
    content = yaml.safe_load(settings.read_text())
    content["optimizer"]["learning_rat"] = 1.0
    content["objectivs"] = {"itm_weight": 2.0}
    write_recipe(settings, content)
    found = refusal("--recipe", str(settings), "--modle.width", "8", "--data.batch_size=3")
    assert {problem.kind for problem in found.values()} == {"unknown_key"}
    assert found["optimizer.learning_rat"].endswith("did you mean optimizer.learning_rate?")
    assert found["objectivs"].endswith("did you mean objectives?")
    assert found["modle"] == "command line: modle: unknown key; did you mean model?"
    assert found["data.batch_size"].endswith("did you mean views.image_text.batch_size?"), "the nearest of that name"
    lines = settings.read_text().splitlines()
    assert found["objectivs"].place == f"{settings}:{lines.index('objectivs:') + 1}"


def test_a_view_can_be_switched_off(settings: Path) -> None:
    assert list(read_recipe(["--recipe", str(settings), "--views.text_pair", "null"]).views) == ["image_text"]
    everything = refusal("--recipe", str(settings), "--views", "{image_text: null}")
    assert everything["views"].endswith("none is given")


@pytest.mark.parametrize("key", ["run_folder", "data.tokenizer", "data.cache.folder"])
def test_what_is_written_or_read_here_is_no_url(settings: Path, key: str) -> None:
    found = refusal("--recipe", str(settings), f"--{key}", "s3://a/b")
    assert found[key].endswith(", got the URL s3://a/b; give a path of this machine")


def test_wrong_type(settings: Path) -> None:
    assert refusal("--recipe", str(settings), "--optimizer.total_steps", "many")["optimizer.total_steps"] == (
        "command line: optimizer.total_steps: expected a whole number of at least 1, got many"
    )


def test_all_wrong_values_come_together_from_the_file_and_the_command_line(settings: Path) -> None:
    content = yaml.safe_load(settings.read_text())
    content["seed"] = "abc"
    content["views"]["image_text"]["batch_size"] = "many"
    write_recipe(settings, content)
    found = refusal("--recipe", str(settings), "--optimizer.total_steps", "ten", "--data.num_workers=x")
    assert {problem.kind for problem in found.values()} == {"wrong_value"}
    assert found["seed"].endswith("seed: expected a whole number, got abc")
    assert found["views.image_text.batch_size"].endswith("expected a whole number of at least 1, got many")
    assert found["optimizer.total_steps"].endswith("got ten") and found["data.num_workers"].endswith("got x")
    assert yaml.safe_load(settings.read_text()) == content  # the user's file is only read


def test_broken_rules_of_all_parts_come_together(settings: Path) -> None:
    wrong = ("--optimizer.learning_rate", "-1", "--model.vision.num_heads", "3", "--views.image_text.batch_size", "15")
    found = refusal("--recipe", str(settings), *wrong)
    assert found["optimizer.learning_rate"].endswith("expected a number above 0, got -1")
    assert "expected a divisor of width" in found["model.vision.num_heads"]
    assert found["views.image_text.batch_size"].endswith("15 is no multiple of negative_group 8")
    assert {problem.place for problem in found.values()} == {"command line"}


def test_wrong_word(settings: Path) -> None:
    found = refusal("--recipe", str(settings), "--model.text.norm_position", "middle")
    assert found["model.text.norm_position"].endswith("expected one of pre, post, got middle")


def test_contradictions_come_together(settings: Path) -> None:
    found = refusal("--recipe", str(settings), "--engine", "plain", "--precision", "bf16")
    assert "engine plain runs in fp32" in found["precision"]
    found = refusal("--recipe", str(settings), "--checkpoint.keep", "0", "--objectives.itm_weight", "-1")
    assert found["checkpoint.keep"].endswith("expected a whole number of at least 1, got 0")
    assert found["objectives.itm_weight"].endswith("expected a number of at least 0, got -1")


def test_unknown_recipe_lists_the_shipped_ones() -> None:
    (problem,) = refusal("--recipe", "demmo").values()
    assert "cclm_3m" in problem.split("got")[0] and problem.endswith("got 'demmo'; did you mean demo?")


def test_recipe_that_is_no_mapping(tmp_path: Path) -> None:
    path = tmp_path / "list.yaml"
    path.write_text("- a\n- b\n", encoding="utf-8")
    (problem,) = refusal("--recipe", str(path)).values()
    assert problem == f"{path}:1: expected a mapping of options, got a list"


@pytest.mark.parametrize("content", [b"a: [1, 2", b"seed: \xff\xfe"])
def test_recipe_that_cannot_be_read(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    (problem,) = refusal("--recipe", str(path)).values()
    assert problem.kind == "unreadable" and problem.place.startswith(str(path))


def test_folder_instead_of_a_recipe(tmp_path: Path) -> None:
    assert "or one of" in next(iter(refusal("--recipe", str(tmp_path)).values()))


def test_sizes_of_data_and_network_must_fit(settings: Path) -> None:
    found = refusal(
        *("--recipe", str(settings), "--model.vision.image_size", "32", "--views.text_pair.max_tokens", "40"),
        *("--views.image_text.negative_group", "7"),
    )
    assert found["views.image_text.transform.size"].endswith("16 is not model.vision.image_size 32")
    assert found["views.text_pair.max_tokens"].endswith("texts of 40 tokens exceed the 8 positions of model.text")
    assert found["views.image_text.batch_size"].endswith("multiple of negative_group 7")
    padded = refusal("--recipe", str(settings), "--data.pad_multiple", "16")
    assert padded["views.image_text.max_tokens"].endswith("16 positions with data.pad_multiple, model.text has 8")


def test_a_mix_is_read_from_yaml(settings: Path) -> None:
    content = yaml.safe_load(settings.read_text(encoding="utf-8"))
    stages = [{"start_step": 5, "weights": {"images": 2.0}}, {"start_step": 9, "language_weights": {"de": 1.0}}]
    mix = {"temperature": 3.3, "language_weights": {"en": 2.0, "de": 1.0}, "schedule": stages}
    content["views"]["image_text"]["mix"] = mix
    settings.write_text(yaml.safe_dump(content), encoding="utf-8")
    images = read_recipe(["--recipe", str(settings)]).views["image_text"]
    assert images.mix.schedule[0].weights == {"images": 2.0} and images.mix.schedule[1].language_weights == {"de": 1.0}
    assert images.mix.language_weights == {"en": 2.0, "de": 1.0}


def test_ramp_that_ends_before_it_starts(settings: Path) -> None:
    found = refusal("--recipe", str(settings), "--objectives.hardness_start_step", "9")
    assert found["objectives.hardness_start_step"].endswith("9 is after hardness_full_step 4")


def test_known_keys_are_the_whole_tree() -> None:
    known = set(known_keys(RunConfig, kinds_of(VIEWS)))
    assert {item.name for item in fields(RunConfig)} < known
    assert {"views.image_text.transform.size", "model.fusion.num_layers", "optimizer.betas"} <= known
    assert not any(key.startswith("_") for key in known)


def test_where_views_stand_changes_nothing(settings: Path) -> None:
    content = yaml.safe_load(settings.read_text(encoding="utf-8"))
    content["views"] = dict(reversed(content["views"].items()))
    turned = settings.with_name("turned.yaml")
    turned.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    assert to_plain(read_recipe(["--recipe", str(turned)])) == to_plain(read_recipe(["--recipe", str(settings)]))
    assert list(read_recipe(["--recipe", str(turned)]).views) == ["image_text", "text_pair"]


def test_a_view_that_nobody_knows_is_named(settings: Path) -> None:
    found = refusal("--recipe", str(settings), "--views.image_txt.batch_size", "8")
    assert found["views.image_txt"].endswith("did you mean views.image_text?")
