"""Sketches: records that are alike meet and are known to be alike, others are not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cclm.types import TextPair
from shards.recipe import DuplicateSettings
from shards.sketch import (
    SourceImage,
    exact_sketch,
    exact_sketch_of_pair,
    near_sketch_of_image,
    near_sketch_of_pair,
    similar,
)
from tests.image_files import encoded
from tests.unit.shards.tiny_pictures import drawing

SETTINGS = DuplicateSettings(near=True)
SENTENCE = "a man in an orange hat is looking at something that nobody else in the picture can see"


def pair(
    text_a: str,
    text_b: str = "ein Mann mit einem orangefarbenen Hut sieht etwas an, das sonst keiner sieht",
    lang_b: str = "de",
) -> Any:
    return TextPair(text_a=text_a, lang_a="en", text_b=text_b, lang_b=lang_b, source="s", group="g")


def alike(one: Any, other: Any, *, exact: Any = False) -> Any:
    signatures = np.frombuffer(one.signature, dtype=np.uint8)[None]
    return bool(similar(signatures, other.signature, SETTINGS, exact=exact)[0])


def test_exact_sketches_forget_case_and_spacing_but_not_the_language() -> None:
    one = exact_sketch_of_pair(pair(SENTENCE))
    assert one == exact_sketch_of_pair(pair(SENTENCE.upper().replace(" ", "  ")))
    assert alike(one, one, exact=True)
    for other in (pair(SENTENCE + "."), pair(SENTENCE, lang_b="nl"), pair(SENTENCE, text_b="x")):
        assert not alike(one, exact_sketch_of_pair(other), exact=True)
    assert exact_sketch(b"a") == exact_sketch(b"a") != exact_sketch(b"b")


def test_near_pairs_meet_and_others_do_not() -> None:
    pytest.importorskip("rensa")
    one = near_sketch_of_pair(pair(SENTENCE))
    assert (len(one.signature), len(one.codes)) == (256, 16)
    near = near_sketch_of_pair(pair(SENTENCE.replace("orange", "red")))
    assert alike(one, near) and set(one.codes) & set(near.codes)
    other = near_sketch_of_pair(pair("two dogs are running over a meadow", "zwei Hunde rennen über eine Wiese"))
    assert not alike(one, other) and not set(one.codes) & set(other.codes)


def test_translations_of_one_sentence_into_two_languages_are_no_duplicates() -> None:
    pytest.importorskip("rensa")
    short = [near_sketch_of_pair(pair(SENTENCE, text_b="ja", lang_b=language)) for language in ("de", "nl")]
    assert not alike(*short)


def test_the_minhash_is_the_same_in_every_process_and_version() -> None:
    """Another value would give other duplicates: builds that are going on must not change their mind."""
    pytest.importorskip("rensa")
    assert near_sketch_of_pair(pair("dog", "Hund")).signature[:12].hex() == EXPECTED_START


EXPECTED_START = "cfbd9fa8c83c22e45f7c86d6"


@pytest.mark.slow
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**64 - 1), st.sets(st.integers(0, 63), max_size=7), st.integers(0, 7))
def test_hashes_within_the_distance_always_share_a_code(
    monkeypatch_hash: Any, value: Any, flipped: Any, distance: Any
) -> None:
    wanted = DuplicateSettings(near=True, distance=distance)
    other = value
    for bit in flipped:
        other ^= 1 << bit
    one, two = (near_sketch_of_image(monkeypatch_hash(each), wanted) for each in (value, other))
    signatures = np.frombuffer(one.signature, dtype=np.uint8)[None]
    assert bool(similar(signatures, two.signature, wanted, exact=False)[0]) == (len(flipped) <= distance)
    if len(flipped) <= distance:
        assert set(one.codes) & set(two.codes)


@pytest.fixture
def monkeypatch_hash(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Pictures that are their own hashes."""
    monkeypatch.setattr("shards.sketch.perceptual_hash", lambda value: value.to_bytes(8, "big"))
    return lambda value: value


def test_a_picture_that_was_scaled_and_compressed_is_a_near_duplicate() -> None:
    pytest.importorskip("imagehash")
    one = near_sketch_of_image(SourceImage(encoded(drawing(1, (300, 200)))), SETTINGS)
    smaller = near_sketch_of_image(SourceImage(encoded(drawing(1, (300, 200)).resize((150, 100)), "JPEG")), SETTINGS)
    other = near_sketch_of_image(SourceImage(encoded(drawing(2, (300, 200)))), SETTINGS)
    assert alike(one, smaller) and not alike(one, other)
