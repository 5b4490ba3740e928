"""Settings of a recipe: every mistake is told with its place, all of them at once."""

from __future__ import annotations

import pytest

from cclm.errors import ConfigError
from shards.fields import read_fields
from shards.recipe import load_recipe
from shards.settings import DuplicateSettings, FilterSettings, ImageSettings, SamplingSettings

RECIPE = """
sets:
  photos:
    view: image_text
    corpus: image_folder
    options: {{folder: /nowhere}}
    {settings}
"""


def load(tmp_path, settings):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(settings=settings), encoding="utf-8")
    return load_recipe(path).sets["photos"]


def test_settings_of_a_recipe(tmp_path):
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


def test_all_mistakes_come_at_once(tmp_path):
    with pytest.raises(ConfigError) as caught:
        load(
            tmp_path,
            "images: {short_sid: 3, quality: 101, format: gif}\n"
            "    filters: {max_aspect: 0.5, min_side: '9', benchmark_texts: x, min_score: high}\n"
            "    duplicates: 5\n"
            "    sampling: {records: 0, temperature: .nan}",
        )
    for complaint in (
        "photos.images.short_sid: unknown (did you mean short_side?)",
        "photos.images.quality: 101 is not a whole number between 1 and 100",
        "photos.images.format: 'gif' is not one of '', 'jpg', 'png', 'webp'",
        "photos.filters.max_aspect: 0.5 is not a number of at least 1",
        "photos.filters.min_side: '9' is not a whole number of at least 0",
        "photos.filters.benchmark_texts: 'x' is not a list of texts",
        "photos.filters.min_score: 'high' is not a number",
        "photos.duplicates: not a map",
        "photos.sampling.records: 0 is not a whole number of at least 1",
        "photos.sampling.temperature: nan is not a number of at least 1",
    ):
        assert complaint in str(caught.value)


def test_true_is_no_number_and_none_is_what_may_be_left_out():
    complaints: list[str] = []
    assert read_fields(FilterSettings, {"min_side": True, "max_aspect": None}, "f", complaints) == FilterSettings()
    assert complaints == ["f.min_side: True is not a whole number of at least 0"]


def test_a_folder_of_test_pictures_without_any(tmp_path):
    with pytest.raises(ConfigError, match=r"expected a file that ends in .jpg, .jpeg, .png, .webp, got a folder"):
        list(FilterSettings(benchmark_images=str(tmp_path)).files)
