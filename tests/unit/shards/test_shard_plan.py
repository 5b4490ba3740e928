"""The plan: a permutation that depends on keys and seed alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cclm.errors import DataError
from cclm.types import View
from shards.plan import plan_set
from shards.recipe import SetRecipe
from tests.unit.shards.tiny_corpora import image_drafts, one_part

RECIPE = SetRecipe(view=View.IMAGE_TEXT, corpus="drawn", num_shards=4)


def order(recipe=RECIPE, drafts=None, name="images"):
    return [
        [draft.key for draft in shard] for shard in plan_set(name, recipe, one_part(drafts or image_drafts(18))).shards
    ]


def test_every_record_goes_to_one_shard_and_shards_are_even():
    shards = order()
    assert [len(shard) for shard in shards] == [4, 5, 4, 5]
    assert sorted(key for shard in shards for key in shard) == sorted(draft.key for draft in image_drafts(18))


def test_the_order_does_not_depend_on_the_corpus_order():
    assert order(drafts=image_drafts(18)[::-1]) == order()


def test_the_order_is_not_that_of_the_corpus_and_changes_with_seed_and_set():
    flat = [key for shard in order() for key in shard]
    assert flat != [draft.key for draft in image_drafts(18)]
    assert order(replace(RECIPE, seed=1)) != order() != order(name="others")


def test_fewer_records_than_shards_leave_no_empty_shard():
    assert [len(shard) for shard in order(drafts=image_drafts(2))] == [1, 1]
    assert plan_set("images", RECIPE, one_part([])).shards == []


def test_a_key_that_comes_again_is_refused_when_made():
    plan = plan_set("images", RECIPE, one_part(image_drafts(3) + image_drafts(1)))
    assert plan.num_records == 4
    refusals = 0
    for draft in (draft for shard in plan.shards for draft in shard):
        try:
            draft.make()
        except DataError as error:
            assert (error.reason, draft.key) == ("key_twice", "key-0")
            refusals += 1
    assert refusals == 1


@pytest.mark.parametrize("change", ["stamp", "recipe", "key"])
def test_the_digest_changes_with_what_would_be_built(change):
    drafts, recipe, stamp = image_drafts(5), RECIPE, ""
    before = plan_set("images", recipe, one_part(drafts)).digest
    if change == "recipe":
        recipe = replace(recipe, num_shards=3)
    elif change == "stamp":
        stamp = "other"
    else:
        drafts[2] = replace(drafts[2], key="other")
    assert plan_set("images", recipe, one_part(drafts, stamp)).digest != before
    assert plan_set("images", RECIPE, one_part(image_drafts(5))).digest == before


def test_the_digest_does_not_know_where_packages_lie():
    here, there = (replace(RECIPE, options={"packages": place}) for place in ("/a", "/b"))
    assert (
        plan_set("i", here, one_part(image_drafts(5))).digest == plan_set("i", there, one_part(image_drafts(5))).digest
    )
