"""The configuration that a run folder holds: as it was written, also by an older version."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from cclm.errors import ConfigError
from cclm.files.reading import to_yaml
from cclm.recipe.read import CONFIG_FILE, read_recipe, read_run_config
from tests.tiny_config import run_config, run_values
from tests.tiny_run import recipe, with_regions
from tests.tiny_training import as_config

OF_0_1 = Path(__file__).with_name("run_of_version_0_1.yaml")
"""What version 0.1 wrote for `--recipe cclm_4m` with a mix."""


def test_a_run_of_version_0_1_is_read_to_the_value(tmp_path: Path) -> None:
    shutil.copy(OF_0_1, tmp_path / CONFIG_FILE)
    found, shipped = read_run_config(tmp_path), read_recipe(["--recipe", "cclm_4m"])
    images = found.views["image_text"]
    assert images.mix.language_weights == {"en": 2.0, "no": 1.0}
    assert list(images.mix.schedule[0].weights.values()) == [1.0, 2.0, 3.0, 4.0]
    assert list(images.mix.schedule[0].weights) == list(images.sources)
    expected = shipped.views["image_text"]
    assert [one.path for one in images.sources.values()] == [one.path for one in expected.sources.values()]
    plain = replace(images, mix=expected.mix, sources=expected.sources)
    data = replace(found.data, num_workers=shipped.data.num_workers)  # it changes no result
    assert not found.kernels.tf32, "products were exact then"
    assert replace(found, data=data, views={**found.views, "image_text": plain}, kernels=shipped.kernels) == shipped


def test_keys_that_were_renamed_or_decided_nothing(tmp_path: Path) -> None:
    values = run_values(model={"temperature": 0.1, "pack_tokens": True, "width": 64})
    (tmp_path / CONFIG_FILE).write_text(yaml.safe_dump(values))
    model = read_run_config(tmp_path).model
    assert (model.initial_temperature, model.width) == (0.1, 64)


def test_what_was_written_is_read_back_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOWHERE", raising=False)
    config = replace(run_config(), run_folder="$NOWHERE/~x")
    (tmp_path / CONFIG_FILE).write_text(to_yaml(config))
    assert read_run_config(tmp_path) == config, "paths were expanded when the run began"


def test_rules_that_came_later_lock_nobody_out(tmp_path: Path) -> None:
    (tmp_path / CONFIG_FILE).write_text(yaml.safe_dump(run_values(engine="plain", precision="bf16")))
    assert read_run_config(tmp_path).precision == "bf16"


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "no such file"), ("[1]", "got line 1: expected a mapping, got a list"), ("seed: x\n", "seed: expected")],
)
def test_a_folder_that_is_no_run(tmp_path: Path, content: Any, words: str) -> None:
    if content is not None:
        (tmp_path / CONFIG_FILE).write_text(content)
    with pytest.raises(ConfigError, match="expected a run folder") as caught:
        read_run_config(tmp_path)
    assert words in str(caught.value)


def test_patches_are_not_dropped_under_views_about_places(tmp_path: Path) -> None:
    config = as_config(with_regions(recipe(tmp_path, tmp_path), tmp_path))
    model = replace(config.model, vision=replace(config.model.vision, keep_patches=0.5))
    (error,) = replace(config, model=model).validation_errors()
    assert error.startswith("model.vision.keep_patches: ") and "(regions)" in error
    views = {name: view for name, view in config.views.items() if name != "regions"}
    assert list(replace(config, model=model, views=views).validation_errors()) == []


@pytest.mark.parametrize(
    ("form", "bias", "more", "begins"),
    [
        ("softmax", None, {}, None),
        ("sigmoid", -10.0, {}, None),
        ("softmax", None, {"contrastive_hardness": 0.5, "label_smoothing": 0.1}, None),
        ("sigmoid", None, {}, "model.similarity_bias: "),
        ("softmax", -10.0, {}, "model.similarity_bias: "),
        ("sigmoid", -10.0, {"contrastive_hardness": 0.5}, "objectives.contrastive: "),
        ("sigmoid", -10.0, {"label_smoothing": 0.1}, "objectives.contrastive: "),
    ],
)
def test_the_sigmoid_form_has_a_bias_and_nothing_else(
    tmp_path: Path, form: Any, bias: float | None, more: dict[str, float], begins: str | None
) -> None:
    config = run_config()
    objectives = replace(config.objectives, contrastive=form, **more)  # type: ignore[arg-type]
    config = replace(config, objectives=objectives, model=replace(config.model, similarity_bias=bias))
    errors = [*config.validation_errors(), *(f"objectives.{error}" for error in objectives.validation_errors())]
    assert [error for error in errors if begins is None or not error.startswith(begins)] == []
    assert bool(errors) == (begins is not None)


@pytest.mark.parametrize(
    ("widths", "begins"),
    [((4, 8), None), ((8, 4), "matryoshka_widths: distinct"), ((4, 4), "matryoshka_widths: distinct")],
)
def test_matryoshka_widths_ascend(widths: tuple[int, ...], begins: str | None) -> None:
    errors = [*replace(run_config().objectives, matryoshka_widths=widths).validation_errors()]
    assert bool(errors) == (begins is not None)
    assert all(error.startswith(begins or "") for error in errors)


def test_matryoshka_widths_are_narrower_than_the_features() -> None:
    config = run_config()
    width = config.model.projection_width
    for widths, is_right in (((width - 1,), True), ((4, width), False)):
        errors = [*replace(config, objectives=replace(config.objectives, matryoshka_widths=widths)).validation_errors()]
        assert (
            errors == [] if is_right else errors[0].startswith("objectives.matryoshka_widths: below model.projection")
        )


def test_blocks_are_not_compiled_for_texts_grouped_by_length(tmp_path: Path) -> None:
    config = as_config(recipe(tmp_path, tmp_path, kernels={"compile": "blocks"}))
    assert not list(config.validation_errors())
    (error,) = replace(config, model=replace(config.model, token_layout="grouped")).validation_errors()
    assert error.startswith("model.token_layout: ")
