"""What is wrong with the settings of any view, and of the data as a whole: a sentence each, all at once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cclm.data.config import rank_blocks, rank_errors, rows_of_rank
from cclm.data.options import MaskingConfig, MixConfig, MixStage, SourceConfig
from cclm.model.options import ModelOptions, TextOptions
from cclm.shardfile.options import CacheConfig
from tests.tiny_views import DATA, IMAGE_TEXT, TEXT_PAIR, Views, only, reader_problems, sources

TWO = sources("a", "b")
STAGE = "mix.schedule[0]"


def stage(start_step: int, **weights: float) -> MixStage:
    return MixStage(start_step=start_step, weights=weights)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_good_settings_have_no_problems(three_views: Views, world_size: int) -> None:
    views = only(three_views, "image_text", "text_pair") if world_size > 2 else three_views
    assert list(rank_errors(views, DATA, world_size)) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sources": {}}, "sources: must name at least one shard set"),
        ({"sources": sources("a", weights=[1]) | sources("b")}, "sources: a weight for all or for none; without: b"),
        ({"sources": sources("a", "b", weights=[0, 0])}, "sources: weights are all 0"),
        (
            {"sources": sources("a", "b", weights=[2, -1])},
            "sources.b.weight: expected a number of at least 0 or null, got -1",
        ),
        ({"sources": {"a": SourceConfig(path="")}}, "sources.a.path: expected a path, got an empty text"),
        ({"sources": sources("a", "b") | sources("c", repeat=0)}, "sources.c.repeat: expected a number above 0, got 0"),
        ({"sources": sources("a", max_epochs=-1)}, "sources.a.max_epochs: expected a number above 0 or null, got -1"),
        ({"mix": MixConfig(temperature=0)}, "mix.temperature: expected a number above 0, got 0"),
        ({"mix": MixConfig(language_weights={"en": 0.0})}, "mix.language_weights: are all 0"),
        ({"mix": MixConfig(language_weights={})}, "mix.language_weights: are all 0"),
        ({"mix": MixConfig(schedule=(stage(5, a=0, b=0),))}, "mix.schedule[0].weights: are all 0"),
        ({"mix": MixConfig(schedule=(stage(5, a=1),))}, f"{STAGE}.weights: name every source once (a, b), are for a"),
        (
            {"mix": MixConfig(schedule=(stage(5, a=1, b=1, c=1),))},
            f"{STAGE}.weights: name every source once (a, b), are for a, b, c",
        ),
        (
            {"mix": MixConfig(schedule=(MixStage(start_step=1, language_weights={"en": -1.0}),))},
            "mix.schedule[0].language_weights.en: expected a number of at least 0, got -1.0",
        ),
        (
            {"mix": MixConfig(schedule=(stage(5, a=1, b=1), stage(5, a=1, b=0)))},
            "mix.schedule: must be one stage after the other; starts are [5, 5]",
        ),
        (
            {"mix": MixConfig(schedule=(stage(-1, a=1, b=1),))},
            "mix.schedule[0].start_step: expected a whole number between 0 and 1e+12, got -1",
        ),
        ({"batch_size": 2}, "batch_size: 2 is no multiple of negative_group 4"),
        ({"matching_rows": 6}, "matching_rows: 6 is no multiple of the 4 negative groups, or above 16"),
        ({"matching_rows": 20}, "matching_rows: 20 is no multiple of the 4 negative groups, or above 16"),
        *(
            ({name: 0}, f"{name}: expected a whole number {bounds}, got 0")
            for bounds, names in (
                ("between 1 and 1e+06", ("batch_size", "num_lanes")),
                ("of at least 1", ("matching_rows", "window")),
            )
            for name in names
        ),
        ({"negative_group": -1}, "negative_group: expected a whole number of at least 0, got -1"),
        ({"negative_group": 1}, "negative_group: must be at least 2: a row needs another one as its negative"),
        ({"max_tokens": 2}, "max_tokens: expected a whole number of at least 3, got 2"),
        ({"max_words": 0}, "max_words: expected a whole number of at least 1 or null, got 0"),
        ({"masking": MaskingConfig(max_masks=0)}, "masking.max_masks: expected a whole number of at least 1, got 0"),
        (
            {"masking": MaskingConfig(max_masks=1, mask_probability=1.1)},
            "masking.mask_probability: expected a number between 0 and 1, got 1.1",
        ),
        (
            {"masking": MaskingConfig(max_masks=1, span_probability=-0.1)},
            "masking.span_probability: expected a number between 0 and 1, got -0.1",
        ),
    ],
)
def test_each_problem_of_a_view_has_its_sentence(changes: dict[str, Any], words: str) -> None:
    assert reader_problems(replace(IMAGE_TEXT, **{"sources": TWO, **changes})) == [words]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"bad_sample_limit": 2.0}, "bad_sample_limit: expected a number between 0 and 1, got 2.0"),
        ({"bad_sample_limit": -0.1}, "bad_sample_limit: expected a number between 0 and 1, got -0.1"),
        ({"cache": CacheConfig(size_bytes=0)}, "cache.size_bytes: expected a whole number of at least 1, got 0"),
        ({"cache": CacheConfig(attempts=0)}, "cache.attempts: expected a whole number of at least 1, got 0"),
        (
            {"cache": CacheConfig(prefetch_steps=-1)},
            "cache.prefetch_steps: expected a whole number of at least 0, got -1",
        ),
        ({"num_workers": -1}, "num_workers: expected a whole number between 0 and 512 or null, got -1"),
        ({"pad_multiple": 0}, "pad_multiple: expected a whole number of at least 1, got 0"),
        ({"micro_batches": 0}, "micro_batches: expected a whole number of at least 1, got 0"),
    ],
)
def test_each_problem_of_the_data_has_its_sentence(changes: dict[str, Any], words: str) -> None:
    assert reader_problems(replace(DATA, tokenizer="somewhere", **changes)) == [words]


def test_global_negatives_are_one_group(views: Views) -> None:
    """Which one micro-batch must hold."""
    view = replace(views["image_text"], negative_group=0)
    assert (view.negative_group, view.num_groups) == (view.batch_size, 1) and list(view.validation_errors()) == []
    assert list(rank_errors({"image_text": view}, DATA, 7)) == []
    (error,) = rank_errors({"image_text": view}, replace(DATA, micro_batches=2), 1)
    assert error.startswith("views.image_text.batch_size: 1 negative groups")


def test_micro_batches_share_the_negative_groups(views: Views) -> None:
    assert list(rank_errors(only(views, "image_text"), replace(DATA, micro_batches=3), 1)) == [
        "views.image_text.batch_size: 4 negative groups do not divide evenly into 3 micro-batches"
    ]


def test_every_rank_needs_a_row_of_each_micro_batch(views: Views) -> None:
    two = replace(DATA, micro_batches=2)
    assert list(rank_errors(views, two, world_size=4)) == []
    assert list(rank_errors(views, two, world_size=5)) == [
        "views.text_pair.batch_size: each of 5 ranks needs a row of a micro-batch, which has 4"
    ]


@pytest.mark.parametrize("world_size", [1, 2, 3, 7, 64, 1000, 1024])
def test_rows_are_assigned_evenly(world_size: int) -> None:
    assigned = [rows_of_rank(1024, rank, world_size) for rank in range(world_size)]
    assert [row for rows in assigned for row in rows] == list(range(1024))
    assert max(map(len, assigned)) - min(map(len, assigned)) <= 1


@pytest.mark.parametrize(
    ("world_size", "blocks"),
    [(1, [1]), (2, [1, 1]), (4, [1] * 4), (8, [2] * 4), (3, [3]), (6, [3, 3]), (64, [16] * 4)],
)
def test_ranks_share_the_groups_that_are_cut(world_size: int, blocks: list[int]) -> None:
    """64 rows in four groups: neighbours that hold parts of a group, and no others."""
    found = rank_blocks(64, 16, world_size)
    assert [rank for block in found for rank in block] == list(range(world_size))
    assert list(map(len, found)) == blocks


def model(max_positions: int, position_offset: int = 0) -> ModelOptions:
    return ModelOptions(text=TextOptions(max_positions=max_positions, position_offset=position_offset))


@pytest.mark.parametrize(
    ("options", "multiple", "words"),
    [
        (model(8), 1, None),
        (model(8), 8, None),
        (model(7), 1, "max_tokens: texts of 8 tokens exceed the 7 positions of model.text"),
        (model(9, 2), 1, "max_tokens: texts of 8 tokens exceed the 7 positions of model.text"),
        (model(8), 5, "max_tokens: 10 positions with data.pad_multiple, model.text has 8"),
        (model(7), 5, "max_tokens: texts of 8 tokens exceed the 7 positions of model.text"),
    ],
)
def test_texts_must_fit_into_the_network(options: ModelOptions, multiple: int, words: str | None) -> None:
    assert list(TEXT_PAIR.model_errors(options, multiple)) == ([] if words is None else [words])


def test_sources_stand_in_the_order_of_their_names() -> None:
    mixed = replace(IMAGE_TEXT, sources=sources("c", "a", "b"))
    assert list(mixed.ordered_sources) == ["a", "b", "c"]
    assert [source.path for source in mixed.ordered_sources.values()] == ["a", "b", "c"]
