"""The plan: what makes two builds the same build."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cclm.errors import ConfigError
from cclm.types import View
from shards.build import plan_set
from shards.recipe import FilterSettings, SetRecipe
from tests.unit.shards.tiny_corpora import lazy_images, one_part

RECIPE = SetRecipe(view=View.IMAGE_TEXT, corpus="drawn", num_shards=4)


def digest(recipe: Path = RECIPE, stamp: str = "", name: str = "all") -> Any:
    return plan_set("images", recipe, one_part(lazy_images(5), stamp, name)).digest


def test_the_digest_changes_with_what_would_be_built() -> None:
    assert len({digest(), digest(replace(RECIPE, num_shards=3)), digest(stamp="other"), digest(name="other")}) == 4
    assert digest() == digest()


def test_the_digest_does_not_know_where_packages_lie() -> None:
    here, there = (replace(RECIPE, options={"packages": place}) for place in ("/a", "/b"))
    assert digest(here) == digest(there)


def test_the_digest_knows_what_the_files_of_filters_hold(tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("bad\n")
    recipe = replace(RECIPE, filters=FilterSettings(blocked_words=str(words)))
    before = digest(recipe)
    words.write_text("worse\n")
    assert digest(recipe) != before
    words.unlink()
    with pytest.raises(ConfigError, match="expected a file or folder that a filter names, got no such"):
        digest(recipe)


def test_parts_of_one_name_are_refused() -> None:
    parts = [*one_part(lazy_images(2)), *one_part(lazy_images(3))]
    with pytest.raises(ConfigError, match="images: expected parts with names of their own, got 'all' again"):
        plan_set("images", RECIPE, parts)
