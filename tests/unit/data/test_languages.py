from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cclm.data.mix_plan import LanguageMix, RequestedLanguage
from cclm.data.mixture import LaneAssignment
from cclm.data.options import MixConfig, MixStage
from cclm.errors import ConfigError


@settings(max_examples=40, deadline=None)
@given(
    weights=st.dictionaries(st.sampled_from("abcdef"), st.sampled_from([0.5, 1.0, 2.0, 3.5]), min_size=1),
    num_lanes=st.integers(1, 6),
    draws=st.integers(1, 200),
)
def test_languages_are_interleaved_exactly(weights: dict[str, float], num_lanes: int, draws: int) -> None:
    mix = LanguageMix(MixConfig(language_weights=weights), {"a": list("abcdefg")}, LaneAssignment(num_lanes, num_lanes))
    for lane in range(num_lanes):
        requests = [mix.requested(0, lane, draw, draw) for draw in range(draws)]
        given = Counter(requested.language for requested in requests if requested is not None)
        for name, weight in weights.items():
            assert abs(given[name] - draws * weight / sum(weights.values())) < 2


def test_weights_change_at_their_step() -> None:
    stages = (MixStage(start_step=4, language_weights={"de": 1.0}), MixStage(start_step=6, weights={"a": 1.0}))
    mix = LanguageMix(
        MixConfig(schedule=stages), {"a": ["de", "en"]}, LaneAssignment(6, 3)
    )  # two draws of a lane a step
    assert mix.requested(0, 1, 7, 7) is None
    assert [mix.requested(0, 1, turn, turn) for turn in (8, 40)] == [RequestedLanguage({"de": 1.0}, "de")] * 2


def test_a_record_without_the_requested_language_shows_another_by_weight() -> None:
    requested = RequestedLanguage({"de": 3.0, "en": 1.0, "ja": 5.0}, "ja")
    assert requested.pick(["de", "en", "ja"], 0.9) == "ja"
    picked = Counter(requested.pick(["de", "en", "fr"], draw / 100) for draw in range(100))
    assert picked == {"de": 75, "en": 25}
    assert requested.pick(["fr"], 0.5) is None


def test_a_source_without_a_weighted_language_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"a language with a weight in every source .*, got de, en in source news"):
        languages = {"talks": ["ja"], "news": ["de", "en"]}
        LanguageMix(MixConfig(language_weights={"ja": 1.0, "de": 0.0}), languages, LaneAssignment(4, 4))
