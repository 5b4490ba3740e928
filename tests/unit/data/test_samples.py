from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from cclm.data.config import DataConfig, ImageTextDataConfig, TextPairDataConfig
from cclm.data.languages import RequestedLanguage
from cclm.data.ledger import identity_hash, sample_hash
from cclm.data.samples import choose_caption, image_text_sample, other_captions, text_pair_sample
from cclm.data.tokens import TextTokenizer
from cclm.errors import DataError
from cclm.types import ImageTextRecord, TextPair

CAPTIONS = {"en": ["aa", "ab", "ac"], "de": ["ad"], "fr": ["ae", "af"]}


def views(config: DataConfig) -> tuple[ImageTextDataConfig, TextPairDataConfig]:
    assert config.image_text is not None and config.text_pair is not None
    return config.image_text, config.text_pair


def choices(config: ImageTextDataConfig) -> dict[tuple[str, int], float]:
    """The share of each (language, caption) over a fine grid of the two uniform draws."""
    grid = (np.arange(300) + 0.5) / 300
    counts = Counter(choose_caption(CAPTIONS, config, one, two) for one in grid for two in grid)
    return {choice: count / 90000 for choice, count in counts.items()}


def test_all_captions_of_a_language_are_alike() -> None:
    shares = choices(ImageTextDataConfig(shards=(), languages=("en",)))
    assert shares == {("en", index): pytest.approx(1 / 3, abs=0.01) for index in range(3)}


def test_the_first_caption_may_be_preferred() -> None:
    shares = choices(ImageTextDataConfig(shards=(), languages=("en",), first_caption_probability=0.6))
    assert [shares["en", index] for index in range(3)] == pytest.approx([0.6, 0.2, 0.2], abs=0.01)
    always = choices(ImageTextDataConfig(shards=(), languages=("en",), first_caption_probability=1.0))
    assert always == {("en", 0): 1.0}


def test_languages_are_alike_whatever_their_captions() -> None:
    languages = Counter[str]()
    for (language, _), share in choices(ImageTextDataConfig(shards=())).items():
        languages[language] += share  # type: ignore[assignment]
    assert dict(languages) == {name: pytest.approx(1 / 3, abs=0.01) for name in CAPTIONS}


def test_a_record_without_the_wanted_language_is_bad() -> None:
    with pytest.raises(DataError, match="a caption in zh, ja, got captions in de, en, fr") as caught:
        choose_caption(CAPTIONS, ImageTextDataConfig(shards=(), languages=("zh", "ja")), 0.0, 0.0)
    assert caught.value.reason == "caption_missing"


def test_an_image_sample_is_told_by_its_hashes(config: DataConfig, tokenizer: TextTokenizer) -> None:
    view = replace(views(config)[0], languages=("de",))
    record = ImageTextRecord(
        key="k", image=b"", image_format="png", captions=CAPTIONS, source="s", licence="MIT", identity="smile"
    )
    picture = Image.new("RGB", (8, 8), (9, 9, 9))
    sample = image_text_sample(record, picture, view, tokenizer, np.random.default_rng(0), False)
    assert sample.fusion is None and sample.ids == tokenizer.encode(["ad"], 8)[0]
    assert sample.identity == identity_hash("smile")
    assert sample.ledger == sample_hash("s", "k", "de:0")
    nameless = image_text_sample(replace(record, identity=""), picture, view, tokenizer, np.random.default_rng(0), True)
    assert nameless.identity == identity_hash("k")
    assert nameless.fusion is not None and nameless.fusion.noise_first_G.shape == (4,)
    assert np.array_equal(nameless.pixels_CHW, sample.pixels_CHW)  # the fusion draws come last


def test_the_second_caption_is_of_another_language_if_there_is_one() -> None:
    every = ImageTextDataConfig(shards=())
    assert other_captions(CAPTIONS, "en", 1, every) == {"de": ["ad"], "fr": ["ae", "af"]}
    assert other_captions(CAPTIONS, "en", 1, replace(every, languages=("en", "fr"))) == {"fr": ["ae", "af"]}
    assert other_captions(CAPTIONS, "en", 1, replace(every, languages=("en", "zh"))) == {"en": ["aa", "ac"]}
    with pytest.raises(DataError, match="expected two captions") as caught:
        other_captions(CAPTIONS, "de", 0, replace(every, languages=("de",)))
    assert caught.value.reason == "caption_single"


def test_two_captions_of_a_picture(config: DataConfig, tokenizer: TextTokenizer) -> None:
    view = replace(views(config)[0], captions_per_image=2)
    record = ImageTextRecord(key="k", image=b"", image_format="png", captions=CAPTIONS, source="s", licence="MIT")
    picture = Image.new("RGB", (8, 8), (9, 9, 9))
    language_of = {tuple(tokenizer.encode([text], 8)[0]): name for name, texts in CAPTIONS.items() for text in texts}
    drawn = Counter[tuple[str, str]]()
    for seed in range(200):
        sample = image_text_sample(record, picture, view, tokenizer, np.random.default_rng(seed), False)
        assert sample.second_ids is not None
        drawn[language_of[tuple(sample.ids)], language_of[tuple(sample.second_ids)]] += 1
    assert len(drawn) == 6 and all(first != second for first, second in drawn)
    assert min(drawn.values()) > 15


def test_a_second_caption_keeps_to_the_languages_with_a_weight(config: DataConfig, tokenizer: TextTokenizer) -> None:
    view = replace(views(config)[0], captions_per_image=2)
    captions = {"de": ["da"], "en": ["ea", "eb"], "fr": ["fa"]}
    record = ImageTextRecord(key="k", image=b"", image_format="png", captions=captions, source="s", licence="MIT")
    picture = Image.new("RGB", (8, 8), (9, 9, 9))
    for weights, expected in (({"en": 1.0}, {("en", "en")}), ({"en": 1.0, "fr": 2.0}, {("en", "fr")})):
        wish = RequestedLanguage(weights, "en")
        samples = [
            image_text_sample(record, picture, view, tokenizer, np.random.default_rng(seed), False, wish)
            for seed in range(30)
        ]
        assert {tuple(sample.languages) for sample in samples} == expected


def test_tlm_masks_both_sentences_in_one_text(config: DataConfig, tokenizer: TextTokenizer) -> None:
    view = replace(views(config)[1], tlm=True)
    pairs = [replace(pair, text_b="bb bc bd be bf bg bh") for pair in group(3)]
    memory, query = ([*tokenizer.encode([text], view.max_tokens)[0]] for text in ("aa", pairs[0].text_b))
    lengths = set()
    for seed in range(8):
        sample = text_pair_sample(pairs, view, tokenizer, np.random.default_rng(seed), True)
        assert sample.fusion is not None
        masked = sample.fusion.masked
        whole = [*query, *memory[1:]] if sample.swapped else [*memory, *query[1:]]
        restored = masked.ids_L.copy()
        restored[masked.column_T] = masked.label_T
        assert restored.tolist() == whole
        lengths.add(len(whole))
    assert lengths == {3 + 8 - 1}


def group(count: int) -> list[TextPair]:
    return [
        TextPair(text_a="aa", lang_a="en", text_b=f"b{chr(97 + index)}", lang_b="x", source="s", group="g")
        for index in range(count)
    ]


def test_translations_are_drawn_without_repetition_if_there_are_enough(
    config: DataConfig, tokenizer: TextTokenizer
) -> None:
    view = views(config)[1]  # three pairs of each sample
    seen: Counter[tuple[int, ...]] = Counter()
    for seed in range(60):
        sample = text_pair_sample(group(5), view, tokenizer, np.random.default_rng(seed), False)
        assert len({tuple(ids) for ids in sample.others}) == 3
        seen.update(tuple(ids) for ids in sample.others)
    assert len(seen) == 5
    small = text_pair_sample(group(2), view, tokenizer, np.random.default_rng(0), False)
    assert len(small.others) == 3 and len({tuple(ids) for ids in small.others}) <= 2
    assert small.anchor == tokenizer.encode(["aa"], 8)[0]


def test_the_masked_text_is_the_one_in_the_images_role(config: DataConfig, tokenizer: TextTokenizer) -> None:
    view = views(config)[1]
    pairs = [replace(pair, text_b="bb bc bd be") for pair in group(3)]
    for probability, length in ((0.0, 3), (1.0, 6)):
        chosen = replace(view, swap_probability=probability)
        sample = text_pair_sample(pairs, chosen, tokenizer, np.random.default_rng(0), True)
        assert sample.fusion is not None and len(sample.fusion.masked.ids_L) == length


def test_noise_is_gumbel(config: DataConfig, tokenizer: TextTokenizer) -> None:
    view = replace(views(config)[1], negative_group=4000)
    fusion = text_pair_sample(group(3), view, tokenizer, np.random.default_rng(0), True).fusion
    assert fusion is not None
    noise = np.concatenate([fusion.noise_first_G, fusion.noise_second_G])
    assert noise.dtype == np.float32
    assert noise.mean() == pytest.approx(0.5772, abs=0.06)
    assert noise.var() == pytest.approx(np.pi**2 / 6, abs=0.15)
