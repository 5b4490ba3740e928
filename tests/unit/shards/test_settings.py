"""Settings of a recipe: every mistake is told with its place, all of them at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from cclm.errors import ConfigError
from shards.recipe import (
    DuplicateSettings,
    FilterSettings,
    ImageSettings,
    SamplingSettings,
    SetRecipe,
    content_hash,
    load_recipe,
)

RECIPE = """
sets:
  photos:
    view: image_text
    corpus: image_folder
    options: {{folder: /nowhere}}
    {settings}
"""


def load(tmp_path: Path, settings: str) -> SetRecipe:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(settings=settings), encoding="utf-8")
    return load_recipe(path).sets["photos"]


def test_settings_of_a_recipe(tmp_path: Path) -> None:
    recipe = load(
        tmp_path,
        "images: {short_side: 256, format: webp}\n"
        "    filters: {max_aspect: 3, benchmark_texts: [a.txt]}\n"
        "    duplicates: {near: true}\n"
        "    sampling: {temperature: 3.3, records: 100}",
    )
    assert recipe.images == ImageSettings(short_side=256, format="webp")
    assert recipe.filters == FilterSettings(max_aspect=3, benchmark_texts=("a.txt",))
    assert recipe.duplicates == DuplicateSettings(near=True)
    assert recipe.sampling == SamplingSettings(temperature=3.3, records=100)
    assert hash(recipe.filters) == hash(FilterSettings(max_aspect=3, benchmark_texts=("a.txt",)))


def test_all_mistakes_come_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(
            tmp_path,
            "images: {short_sid: 3, quality: 101, format: gif}\n"
            "    filters: {max_aspect: 0.5, min_side: '9', benchmark_texts: x, min_score: high}\n"
            "    duplicates: 5\n"
            "    sampling: {records: 0, temperature: .nan}",
        )
    found = {problem.key.removeprefix("sets.photos."): problem for problem in caught.value.problems}
    for key, words in {
        "images.short_sid": "unknown key; did you mean sets.photos.images.short_side?",
        "images.quality": "expected a whole number between 1 and 100, got 101",
        "images.format": 'expected one of "", jpg, png, webp, got gif',
        "filters.max_aspect": "expected a number of at least 1 or null, got 0.5",
        "filters.min_side": 'got the text "9"; write it without quotes',
        "filters.benchmark_texts": "expected a list, each a path, got x",
        "filters.min_score": "expected a number or null, got high",
        "duplicates": "expected a mapping, got 5",
        "sampling.records": "expected a whole number of at least 1 or null, got 0",
        "sampling.temperature": "got .nan, which is not finite",
    }.items():
        assert words in found[key], found[key]
    assert len({problem.place for problem in found.values()}) == 4, "each has its line"


def test_true_is_no_number_and_null_is_what_may_be_left_out(tmp_path: Path) -> None:
    assert load(tmp_path, "filters: {max_aspect: null}").filters == FilterSettings()
    with pytest.raises(ConfigError, match=r"filters\.min_side: expected a whole number of at least 0, got true"):
        load(tmp_path, "filters: {min_side: true}")


def test_a_folder_of_test_pictures_without_any(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"expected a file that ends in .jpg, .jpeg, .png, .webp, got a folder"):
        content_hash(FilterSettings(benchmark_images=str(tmp_path)))
