"""What is wrong with the settings of any view, and of the data as a whole: a sentence each, all at once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cclm.data.config import MixConfig, MixStage, SourceConfig, equal_shares, find_problems
from cclm.data.masking import MaskingConfig
from cclm.model.configuration_cclm import ModelOptions, TextOptions
from cclm.shardfile.cache import CacheConfig
from tests.tiny_views import DATA, IMAGE_TEXT, TEXT_PAIR, Views, change, only, sources

TWO = sources("a", "b")


def stage(start_step: int, **weights: float) -> MixStage:
    return MixStage(start_step=start_step, weights=weights)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_good_settings_have_no_problems(three_views: Views, world_size: int) -> None:
    views = only(three_views, "image_text", "text_pair") if world_size > 2 else three_views
    assert list(find_problems(views, DATA, world_size)) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sources": {}}, "sources must name at least one shard set"),
        ({"sources": sources("a", weights=[1]) | sources("b")}, "a weight for all or for none; without: b"),
        ({"sources": sources("a", "b", weights=[0, 0])}, "sources: weights must be 0 or more, not all 0"),
        ({"sources": sources("a", "b", weights=[2, -1])}, "sources: weights must be 0 or more, not all 0"),
        ({"sources": {"a": SourceConfig(path="")}}, "sources.a.path is empty"),
        ({"sources": sources("a", "b") | sources("c", repeat=0)}, "sources.c: repeat and max_epochs are positive"),
        ({"sources": sources("a", max_epochs=-1)}, "sources.a: repeat and max_epochs are positive"),
        ({"mix": MixConfig(temperature=0)}, "mix.temperature must be positive, is 0"),
        ({"mix": MixConfig(language_weights={"en": 0.0})}, "mix.language_weights must be 0 or more, not all 0"),
        ({"mix": MixConfig(language_weights={})}, "mix.language_weights must be 0 or more, not all 0"),
        ({"mix": MixConfig(schedule=(stage(5, a=0, b=0),))}, "mix.schedule: weights must be 0 or more, not all 0"),
        ({"mix": MixConfig(schedule=(stage(5, a=1),))}, "weights name every source once (a, b), are for a"),
        ({"mix": MixConfig(schedule=(stage(5, a=1, b=1, c=1),))}, "every source once (a, b), are for a, b, c"),
        (
            {"mix": MixConfig(schedule=(MixStage(start_step=1, language_weights={"en": -1.0}),))},
            "mix.schedule: language_weights must be 0 or more",
        ),
        ({"mix": MixConfig(schedule=(stage(5, a=1, b=1), stage(5, a=1, b=0)))}, "one stage after the other"),
        ({"mix": MixConfig(schedule=(stage(-1, a=1, b=1),))}, "from step 0 on; starts are [-1]"),
        ({"batch_size": 2}, "batch_size 2 is no multiple of negative_group 4"),
        ({"matching_rows": 6}, "matching_rows 6 is no multiple of the 4 negative groups, or above 16"),
        ({"matching_rows": 20}, "matching_rows 20 is no multiple of the 4 negative groups, or above 16"),
        *(
            ({name: 0}, "batch_size, negative_group, matching_rows, num_lanes and window must be at least 1")
            for name in ("batch_size", "negative_group", "matching_rows", "num_lanes", "window")
        ),
        ({"max_tokens": 2}, "max_tokens must be at least 3, max_words at least 1; are 2 and None"),
        ({"max_words": 0}, "max_tokens must be at least 3, max_words at least 1; are 8 and 0"),
        ({"masking": MaskingConfig(max_masks=0)}, "masking: probabilities must be between 0 and 1, max_masks at least"),
        ({"masking": MaskingConfig(max_masks=1, mask_probability=1.1)}, "masking: probabilities must be between 0"),
        ({"masking": MaskingConfig(max_masks=1, span_probability=-0.1)}, "masking: probabilities must be between 0"),
    ],
)
def test_each_problem_of_a_view_has_its_sentence(changes: dict[str, Any], words: str) -> None:
    (sentence,) = replace(IMAGE_TEXT, **{"sources": TWO, **changes}).find_problems(1, 1)
    assert words in sentence


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"bad_sample_limit": 2.0}, "data.bad_sample_limit must be between 0 and 1, is 2.0"),
        ({"bad_sample_limit": -0.1}, "data.bad_sample_limit must be between 0 and 1"),
        ({"cache": CacheConfig(size_bytes=0)}, "data.cache: size_bytes and attempts must be at least 1"),
        ({"cache": CacheConfig(attempts=0)}, "data.cache: size_bytes and attempts must be at least 1"),
        ({"cache": CacheConfig(prefetch_steps=-1)}, "prefetch_steps at least 0"),
        ({"num_workers": -1}, "data: num_workers -1 must be at least 0, pad_multiple 8 at least 1"),
        ({"pad_multiple": 0}, "data: num_workers 0 must be at least 0, pad_multiple 0 at least 1"),
        ({"micro_batches": 0}, "data.micro_batches must be at least 1, is 0"),
        ({"micro_batches": 3}, "views.image_text: the 4 negative groups must divide evenly into 3 micro_batches"),
    ],
)
def test_each_problem_of_the_data_has_its_sentence(views: Views, changes: dict[str, Any], words: str) -> None:
    (sentence,) = find_problems(only(views, "image_text"), replace(DATA, **changes))
    assert words in sentence


def test_every_rank_needs_a_negative_group_of_each_micro_batch(views: Views) -> None:
    two = replace(DATA, micro_batches=2)
    assert list(find_problems(views, two, world_size=2)) == []
    found = list(find_problems(views, two, world_size=3))
    assert found == [f"views.{name}: each of 3 ranks needs a negative group, the batch has only 4" for name in views]


def test_all_problems_come_at_once(views: Views) -> None:
    broken = replace(DATA, bad_sample_limit=2.0, num_workers=-1)
    found = list(find_problems(change(views, "image_text", num_lanes=0, max_tokens=1), broken, world_size=8))
    assert [sentence.partition(" ")[0] for sentence in found] == [
        "data.bad_sample_limit",
        "data:",
        "views.image_text:",
        "views.image_text:",
        "views.text_pair:",
    ]
    assert "num_lanes" in found[2] and "max_tokens" in found[3] and "only 4" in found[4]


def test_a_run_without_views_is_refused() -> None:
    assert list(find_problems({}, DATA)) == ["views: none is given"]


def test_shares_are_equal_if_the_groups_of_every_view_divide(views: Views) -> None:
    assert [equal_shares(views, DATA, world_size) for world_size in (1, 2, 3, 4)] == [True, True, False, True]
    assert not equal_shares(views, replace(DATA, micro_batches=2), 4)
    assert not equal_shares(change(views, "text_pair", batch_size=6), DATA, 2), "one view is enough"


def model(max_positions: int, position_offset: int = 0) -> ModelOptions:
    return ModelOptions(text=TextOptions(max_positions=max_positions, position_offset=position_offset))


@pytest.mark.parametrize(
    ("options", "multiple", "words"),
    [
        (model(8), 1, None),
        (model(8), 8, None),
        (model(7), 1, "texts of 8 tokens (max_tokens) exceed the 7 positions of model.text"),
        (model(9, 2), 1, "texts of 8 tokens (max_tokens) exceed the 7 positions of model.text"),
        (model(8), 5, "10 positions with data.pad_multiple, model.text has 8"),
        (model(7), 5, "texts of 8 tokens (max_tokens) exceed the 7 positions of model.text"),
    ],
)
def test_texts_must_fit_into_the_network(options: ModelOptions, multiple: int, words: str | None) -> None:
    assert list(TEXT_PAIR.find_model_problems(options, multiple)) == ([] if words is None else [words])


def test_sources_stand_in_the_order_of_their_names() -> None:
    mixed = replace(IMAGE_TEXT, sources=sources("c", "a", "b"))
    assert list(mixed.ordered_sources) == ["a", "b", "c"]
    assert [source.path for source in mixed.ordered_sources.values()] == ["a", "b", "c"]
