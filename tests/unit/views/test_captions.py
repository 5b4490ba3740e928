"""Which caption of a record is shown, and which second one."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from cclm.data.mix_plan import RequestedLanguage
from cclm.errors import DataError
from cclm.views.captions import choose_caption, other_captions
from cclm.views.image_text.options import ImageTextConfig, ImageViewConfig

CAPTIONS = {"en": ["aa", "ab", "ac"], "de": ["ad"], "fr": ["ae", "af"]}
EVERY = ImageTextConfig(sources={})


def choices(config: ImageViewConfig, requested: RequestedLanguage | None = None) -> dict[tuple[str, int], float]:
    """The share of each (language, caption) over a fine grid of the two uniform draws."""
    grid = (np.arange(300) + 0.5) / 300
    counts = Counter(choose_caption(CAPTIONS, config, one, two, requested) for one in grid for two in grid)
    return {choice: count / 90000 for choice, count in counts.items()}


def by_language(shares: dict[tuple[str, int], float]) -> dict[str, float]:
    totals: dict[str, float] = {}
    for (language, _), share in shares.items():
        totals[language] = totals.get(language, 0.0) + share
    return totals


def test_all_captions_of_a_language_are_alike() -> None:
    shares = choices(replace(EVERY, languages=("en",)))
    assert shares == {("en", index): pytest.approx(1 / 3, abs=0.01) for index in range(3)}


def test_the_first_caption_may_be_preferred() -> None:
    shares = choices(replace(EVERY, languages=("en",), first_caption_probability=0.6))
    assert [shares["en", index] for index in range(3)] == pytest.approx([0.6, 0.2, 0.2], abs=0.01)
    always = choices(replace(EVERY, languages=("en",), first_caption_probability=1.0))
    assert always == {("en", 0): 1.0}


def test_languages_are_alike_whatever_their_captions() -> None:
    assert by_language(choices(EVERY)) == {name: pytest.approx(1 / 3, abs=0.01) for name in CAPTIONS}


def test_a_requested_language_comes_first_and_others_by_weight() -> None:
    assert by_language(choices(EVERY, RequestedLanguage({"de": 1.0, "fr": 2.0}, "de"))) == {"de": pytest.approx(1.0)}
    absent = by_language(choices(EVERY, RequestedLanguage({"de": 1.0, "fr": 3.0, "ja": 9.0}, "ja")))
    assert absent == {"de": pytest.approx(0.25, abs=0.01), "fr": pytest.approx(0.75, abs=0.01)}


def test_a_record_without_the_wanted_language_is_bad() -> None:
    with pytest.raises(DataError) as caught:
        choose_caption(CAPTIONS, replace(EVERY, languages=("zh", "ja")), 0.0, 0.0)
    assert caught.value.reason == "caption_missing"
    with pytest.raises(DataError) as caught:
        choose_caption(CAPTIONS, EVERY, 0.0, 0.0, RequestedLanguage({"zh": 1.0}, "zh"))
    assert caught.value.reason == "caption_missing"


def test_the_second_caption_is_of_another_language_if_there_is_one() -> None:
    assert other_captions(CAPTIONS, "en", 1, EVERY) == {"de": ["ad"], "fr": ["ae", "af"]}
    assert other_captions(CAPTIONS, "en", 1, replace(EVERY, languages=("en", "fr"))) == {"fr": ["ae", "af"]}
    assert other_captions(CAPTIONS, "en", 1, replace(EVERY, languages=("en", "zh"))) == {"en": ["aa", "ac"]}
    with pytest.raises(DataError) as caught:
        other_captions(CAPTIONS, "de", 0, replace(EVERY, languages=("de",)))
    assert caught.value.reason == "caption_single"


def test_the_second_caption_keeps_to_the_languages_with_a_weight() -> None:
    assert other_captions(CAPTIONS, "en", 0, EVERY, RequestedLanguage({"en": 1.0}, "en")) == {"en": ["ab", "ac"]}
    both = RequestedLanguage({"en": 1.0, "fr": 1.0}, "en")
    assert other_captions(CAPTIONS, "en", 0, EVERY, both) == {"fr": ["ae", "af"]}
