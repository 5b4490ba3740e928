from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cclm.data.config import DataConfig, complaints_about
from cclm.data.dealing import Dealing
from cclm.data.exposure import Exposure, source_names
from cclm.data.languages import LanguageMix, LanguageWish
from cclm.data.loader import StepDataset, make_loader
from cclm.data.options import MixConfig, MixStage
from cclm.data.samples import choose_pairs
from cclm.data.tokens import TextTokenizer
from cclm.errors import ConfigError, DataError


@settings(max_examples=40, deadline=None)
@given(
    weights=st.dictionaries(st.sampled_from("abcdef"), st.sampled_from([0.5, 1.0, 2.0, 3.5]), min_size=1),
    num_lanes=st.integers(1, 6),
    draws=st.integers(1, 200),
)
def test_languages_are_dealt_exactly(weights: dict[str, float], num_lanes: int, draws: int) -> None:
    mix = LanguageMix(MixConfig(language_weights=weights), [list("abcdefg")], Dealing(num_lanes, num_lanes))
    for lane in range(num_lanes):
        wishes = [mix.wish(0, lane, draw, draw) for draw in range(draws)]
        dealt = Counter(wish.language for wish in wishes if wish is not None)
        for name, weight in weights.items():
            assert abs(dealt[name] - draws * weight / sum(weights.values())) < 2


def test_weights_change_at_their_step() -> None:
    stages = (MixStage(start_step=4, language_weights={"de": 1.0}), MixStage(start_step=6, weights=(1.0,)))
    mix = LanguageMix(MixConfig(schedule=stages), [["de", "en"]], Dealing(6, 3))  # two draws of a lane a step
    assert mix.wish(0, 1, 7, 7) is None
    assert [mix.wish(0, 1, turn, turn) for turn in (8, 40)] == [LanguageWish({"de": 1.0}, "de")] * 2


def test_a_record_without_the_dealt_language_shows_another_by_weight() -> None:
    wish = LanguageWish({"de": 3.0, "en": 1.0, "ja": 5.0}, "ja")
    assert wish.pick(["de", "en", "ja"], 0.9) == "ja"
    picked = Counter(wish.pick(["de", "en", "fr"], draw / 100) for draw in range(100))
    assert picked == {"de": 75, "en": 25}
    assert wish.pick(["fr"], 0.5) is None


def test_a_source_without_a_weighted_language_is_refused() -> None:
    with pytest.raises(ConfigError, match="a language with a weight in every source"):
        LanguageMix(MixConfig(language_weights={"ja": 1.0, "de": 0.0}), [["ja"], ["de", "en"]], Dealing(4, 4))


def test_translations_are_chosen_by_weight() -> None:
    wish = LanguageWish({"de": 1.0, "fr": 3.0}, None)
    generator = np.random.default_rng(0)
    first = Counter(choose_pairs(["de", "en", "fr"], 1, generator, wish)[0] for _ in range(2000))
    assert set(first) == {0, 2} and first[2] == pytest.approx(1500, rel=0.05)
    assert sorted(choose_pairs(["de", "en", "fr"], 2, generator, wish)) == [0, 2]
    chosen = choose_pairs(["de", "en", "fr", "de"], 5, generator, LanguageWish(wish.weights, "de"))
    assert len(chosen) == 5 and set(chosen) == {0, 2, 3} and set(chosen[:2]) == {0, 3}
    with pytest.raises(DataError, match="expected a translation into a language with a weight") as caught:
        choose_pairs(["en"], 1, generator, wish)
    assert caught.value.reason == "translation_missing"


@pytest.fixture
def weighted(config: DataConfig) -> DataConfig:
    assert config.image_text is not None
    mix = MixConfig(language_weights={"en": 3.0, "de": 1.0})
    return replace(config, image_text=replace(config.image_text, mix=mix))


def test_what_was_shown_is_counted_exactly(weighted: DataConfig, tokenizer: TextTokenizer) -> None:
    dataset = StepDataset(weighted, tokenizer, 5)
    exposure = Exposure(dataset.exposure_keys)
    for step in range(12):
        exposure.add(dataset[step].exposure)
    seen = exposure.gather(lambda counts: counts)
    assert dataset.image_text is not None and dataset.text_pair is not None
    first, second, third = (key for key in dataset.exposure_keys if key.count("/") == 1)
    assert [seen[first], seen[second]] == dataset.image_text.stream.drawn(12) == [128, 64]
    assert seen[third] == 12 * 8
    for name in (first, second):  # exactly three to one, up to a draw at each end of each of the four lanes
        assert seen[f"{name}/en"] + seen[f"{name}/de"] == seen[name]
        assert abs(seen[f"{name}/de"] - seen[name] / 4) <= 8
    assert seen[f"{third}/en"] == 12 * 8 and seen[f"{third}/xx"] == 12 * 8 * 3  # a sentence, three translations


def test_counts_of_ranks_and_lives_add_up(weighted: DataConfig, tokenizer: TextTokenizer) -> None:
    whole = StepDataset(weighted, tokenizer, 5)
    everything = Exposure(whole.exposure_keys)
    for step in range(6):
        everything.add(whole[step].exposure)
    before: dict[str, int] = {}
    for steps, world_size in ((range(3), 2), (range(3, 6), 3)):
        ranks = [StepDataset(weighted, tokenizer, 5, rank, world_size) for rank in range(world_size)]
        life = Exposure(whole.exposure_keys, before)
        for step in steps:
            for rank in ranks:
                life.add(rank[step].exposure)
        before = life.gather(lambda counts: counts)
    assert before == everything.gather(lambda counts: counts)


def test_sets_of_the_same_name_are_told_apart() -> None:
    assert source_names(["a/train", "s3://b/train/", "c"]) == ["train.0", "train.1", "c"]


def test_a_run_longer_than_its_sources_is_refused(config: DataConfig, tokenizer: TextTokenizer) -> None:
    assert config.text_pair is not None
    short = replace(config, text_pair=replace(config.text_pair, mix=MixConfig(max_epochs=(2,))))
    dataset = StepDataset(short, tokenizer, 5)
    assert dataset.text_pair is not None
    end = dataset.text_pair.stream.end_step
    assert end is not None and 57 * 2 - 8 < end * 8 <= 57 * 2
    dataset.refuse_too_many_steps(end)
    assert len(list(make_loader(dataset, end - 1, end))) == 1
    with pytest.raises(ConfigError, match=f"used up after {end}"):
        dataset.refuse_too_many_steps(end + 1)


def test_small_weights_are_weights_like_others() -> None:
    wish = LanguageWish({"de": 1e-4, "en": 1e-4}, None)
    generator = np.random.default_rng(0)
    first = Counter(choose_pairs(["de", "en"], 1, generator, wish)[0] for _ in range(2000))
    assert 900 < first[0] < 1100


def test_language_weights_of_nothing_are_refused(config: DataConfig) -> None:
    assert config.image_text is not None
    none = replace(config.image_text, mix=MixConfig(language_weights={"en": 0.0}))
    assert any(
        "language_weights must be 0 or more" in line for line in complaints_about(replace(config, image_text=none))
    )
