"""What is wrong with the settings of the text-pair view."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cclm.model.configuration_cclm import ModelOptions, TextOptions
from tests.tiny_views import TEXT_PAIR, sources

GOOD = replace(TEXT_PAIR, sources=sources("pairs"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pairs_per_sample": 0}, "pairs_per_sample must be at least 1, is 0"),
        ({"swap_probability": -0.1}, "swap_probability must be between 0 and 1, is -0.1"),
        ({"swap_probability": 1.1}, "swap_probability must be between 0 and 1, is 1.1"),
        ({"length_buckets": 0}, "length_buckets must be 1 to window, and 1 for remote shards, is 0"),
        ({"length_buckets": 6}, "length_buckets must be 1 to window, and 1 for remote shards, is 6"),
        (
            {"length_buckets": 2, "sources": sources("pairs", "s3://there/more")},
            "length_buckets must be 1 to window, and 1 for remote shards, is 2",
        ),
    ],
)
def test_each_problem_has_its_sentence(changes: dict[str, Any], words: str) -> None:
    assert list(replace(GOOD, **changes).find_problems(1, 1)) == [words]


def test_what_is_allowed() -> None:
    assert not list(GOOD.find_problems(4, 1))
    assert not list(replace(GOOD, length_buckets=5).find_problems(1, 1))
    assert not list(replace(GOOD, sources=sources("https://there/more")).find_problems(1, 1))


@pytest.mark.parametrize(
    ("tlm", "multiple", "words"),
    [
        (False, 1, []),
        (True, 1, ["texts of 15 tokens (max_tokens) exceed the 14 positions of model.text"]),
        (False, 5, []),
        (False, 12, []),
        (False, 16, ["16 positions with data.pad_multiple, model.text has 14"]),
    ],
)
def test_tlm_needs_positions_for_both_sentences(tlm: bool, multiple: int, words: list[str]) -> None:
    model = ModelOptions(text=TextOptions(max_positions=14))
    assert list(replace(GOOD, tlm=tlm).find_model_problems(model, multiple)) == words


def test_what_it_counts() -> None:
    assert (GOOD.pairs_per_step, GOOD.samples_per_step, GOOD.longest_text) == (24, 8, 8)
    assert replace(GOOD, tlm=True).longest_text == 15
