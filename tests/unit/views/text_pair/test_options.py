"""What is wrong with the settings of the text-pair view."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cclm.model.options import ModelOptions, TextOptions
from tests.tiny_views import TEXT_PAIR, reader_problems, sources

GOOD = replace(TEXT_PAIR, sources=sources("pairs"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pairs_per_sample": 0}, "pairs_per_sample: expected a whole number of at least 1, got 0"),
        ({"swap_probability": -0.1}, "swap_probability: expected a number between 0 and 1, got -0.1"),
        ({"swap_probability": 1.1}, "swap_probability: expected a number between 0 and 1, got 1.1"),
        ({"length_buckets": 0}, "length_buckets: expected a whole number of at least 1, got 0"),
        ({"length_buckets": 6}, "length_buckets: must be 1 to window, and 1 for remote shards, is 6"),
        (
            {"length_buckets": 2, "sources": sources("pairs", "s3://there/more")},
            "length_buckets: must be 1 to window, and 1 for remote shards, is 2",
        ),
    ],
)
def test_each_problem_has_its_sentence(changes: dict[str, Any], words: str) -> None:
    assert (reader_problems(replace(GOOD, **changes))) == [words]


def test_what_is_allowed() -> None:
    assert not (reader_problems(GOOD))
    assert not (reader_problems(replace(GOOD, length_buckets=5)))
    assert not (reader_problems(replace(GOOD, sources=sources("https://there/more"))))


@pytest.mark.parametrize(
    ("tlm", "multiple", "words"),
    [
        (False, 1, []),
        (True, 1, ["max_tokens: texts of 15 tokens exceed the 14 positions of model.text"]),
        (False, 5, []),
        (False, 12, []),
        (False, 16, ["max_tokens: 16 positions with data.pad_multiple, model.text has 14"]),
    ],
)
def test_tlm_needs_positions_for_both_sentences(tlm: bool, multiple: int, words: list[str]) -> None:
    model = ModelOptions(text=TextOptions(max_positions=14))
    assert list(replace(GOOD, tlm=tlm).model_errors(model, multiple)) == words


def test_what_it_counts() -> None:
    assert (GOOD.pairs_per_step, GOOD.samples_per_step, GOOD.longest_text) == (24, 8, 8)
    assert replace(GOOD, tlm=True).longest_text == 15
