"""Recipes: the shipped ones load; a wrong one gets all of its complaints at once, with the nearest right word."""

from __future__ import annotations

from pathlib import Path

import pytest

from cclm.errors import ConfigError
from cclm.types import View
from shards.recipe import load_recipe

RECIPES = Path(__file__).parents[3] / "shards" / "recipes"


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_recipe_loads(path: Path) -> None:
    assert load_recipe(path, packages=Path("cache")).sets


def test_the_demo_keeps_translations_away_from_pictures() -> None:
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


def test_all_problems_come_at_once(tmp_path: Path) -> None:
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
    found = {problem.key: problem for problem in caught.value.problems}
    for key, words in {
        "extra": "unknown key; known here: sets",
        "sets.one.num_shard": "did you mean sets.one.num_shards?",
        "sets.one.options.folders": "did you mean sets.one.options.folder?",
        "sets.one.options.folder": "missing: expected a path",
        "sets.two.view": "corpus pair_file yields text_pair, not image_text",
        "sets.two.num_shards": "expected a whole number of at least 1, got 0",
        "sets.two.max_bad_fraction": "expected a number between 0 and 1, got 2",
        "sets.three.view": "missing: expected one of image_text, text_pair",
        "sets.three.corpus": "did you mean image_folder?",
        "sets.four": "expected a mapping, got 4",
    }.items():
        assert words in found[key], found
    assert found["sets.three.corpus"].place == f"{path}:5"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sets: {}", "sets: at least one is needed"),
        ("a: [", "broken YAML"),
        ("", "expected a mapping, got nothing"),
        ("sets:\n  a: {view: image_text, corpus: image_folder, options: {folder: x}}\n  a: {}", "line 3: a: this key"),
        ("sets: {../x: {view: image_text, corpus: image_folder, options: {folder: x}}}", "'../x' must be at most 100"),
        ("sets: {a.b: {view: image_text, corpus: image_folder, options: {folder: x}}}", "'a.b' must be at most 100"),
        ("sets: {a: {view: image_text, corpus: image_folder, options: {folder: $NOWHERE/x}}}", "NOWHERE is not set"),
    ],
)
def test_what_is_no_recipe(tmp_path: Path, text: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOWHERE", raising=False)
    with pytest.raises(ConfigError, match=words):
        load_recipe(write(tmp_path, text))


def test_a_missing_recipe(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected a recipe file without mistakes, got no such file"):
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
