"""Recipes: the shipped ones load; a wrong one gets all of its complaints at once, with the nearest right word."""

from __future__ import annotations

from pathlib import Path

import pytest

from cclm.errors import ConfigError
from cclm.types import View
from shards.recipe import load_recipe

RECIPES = Path(__file__).parents[3] / "shards" / "recipes"


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_recipe_loads(path):
    assert load_recipe(path, packages=Path("cache")).sets


def test_the_demo_keeps_translations_away_from_pictures():
    sets = load_recipe(RECIPES / "demo.yaml", packages=Path("cache")).sets
    assert list(sets) == ["image-train", "image-dev", "image-test", "text-train"]
    train, dev, test, text = sets.values()
    assert train.options["languages"] == ["en"]
    artists = [set(entry.options["artists"]) for entry in (train, dev, test)]
    assert not (artists[0] & artists[1] or artists[0] & artists[2] or artists[1] & artists[2])
    control = {"pt", "uk", "nl", "ms"}
    assert not control & {*text.options["translations"], *train.options["languages"]}
    assert control < set(test.options["languages"]) == set(dev.options["languages"])
    assert len(text.options["translations"]) == 20
    assert train.num_shards >= 8 and text.num_shards >= 8
    assert text.view is View.TEXT_PAIR and train.options["packages"] == "cache"


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_all_complaints_come_at_once(tmp_path):
    path = write(
        tmp_path,
        """
        sets:
          one: {view: image_text, corpus: image_folder, num_shard: 3, options: {folders: x}}
          two: {view: image_text, corpus: pair_file, options: {path: p}, num_shards: 0, max_bad_fraction: 2}
          three: {corpus: image_fodler}
          four: 4
        extra: 1
        """,
    )
    with pytest.raises(ConfigError) as caught:
        load_recipe(path)
    message = str(caught.value)
    for complaint in (
        "extra: unknown (known: sets)",
        "one.num_shard: unknown (did you mean num_shards?)",
        "one.options.folders: unknown (did you mean folder?)",
        "one.options.folder: missing",
        "two.view: corpus pair_file yields text_pair, not image_text",
        "two.num_shards: 0 is not a whole number of at least 1",
        "two.max_bad_fraction: 2 is not between 0 and 1",
        "three.view: missing",
        "three.corpus: 'image_fodler' is not one of emoji_images, emoji_names, image_folder, pair_file",
        "four: not a map",
    ):
        assert complaint in message
    assert message.count("expected") == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [("sets: {}", "no `sets:` with at least one set"), ("a: [", "got broken YAML"), ("", "no `sets:`")],
)
def test_what_is_no_recipe(tmp_path, text, words):
    with pytest.raises(ConfigError, match=words):
        load_recipe(write(tmp_path, text))


def test_a_missing_recipe(tmp_path):
    with pytest.raises(ConfigError, match="expected a recipe file, got no such file"):
        load_recipe(tmp_path / "none.yaml")


@pytest.mark.parametrize("name", ["../esc", "news.v1", "a b", "", "a/b", ".", "x" * 101, "[red]"])
def test_a_set_that_no_folder_or_shard_can_be_named_after(tmp_path: Path, name: str) -> None:
    entry = "{view: text_pair, corpus: pair_file, options: {path: p, lang_a: en, lang_b: de}}"
    with pytest.raises(ConfigError, match="letters, digits"):
        load_recipe(write(tmp_path, f'sets: {{"{name}": {entry}, fine-2024: {entry}, 2024: {entry}}}'))
    assert list(load_recipe(write(tmp_path, f"sets: {{fine-2024: {entry}, 2024: {entry}}}")).sets) == [
        "fine-2024",
        "2024",
    ]
