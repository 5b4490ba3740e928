"""One record → one sample of the image-text view."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
from PIL import Image

from cclm.data.ledger import identity_hash, sample_hash
from cclm.data.mix_plan import RequestedLanguage
from cclm.data.tokens import TextTokenizer
from cclm.types import ImageTextRecord
from cclm.views.image_text.view import image_text_sample
from tests.tiny_views import IMAGE_TEXT

CAPTIONS = {"en": ["aa", "ab", "ac"], "de": ["ad"], "fr": ["ae", "af"]}
RECORD = ImageTextRecord(
    key="k", image=b"", image_format="png", captions=CAPTIONS, source="s", licence="MIT", identity="smile"
)
IMAGE = Image.new("RGB", (8, 8), (9, 9, 9))
TWO = replace(IMAGE_TEXT, captions_per_image=2, first_caption_probability=None)


def test_a_sample_is_told_by_its_hashes(tokenizer: TextTokenizer) -> None:
    view = replace(IMAGE_TEXT, languages=("de",))
    sample = image_text_sample(RECORD, IMAGE, view, tokenizer, np.random.default_rng(0), False)
    assert sample.fusion is None and sample.ids == tokenizer.encode(["ad"], 8)[0]
    assert sample.languages == ["de"] and sample.second_ids is None
    assert sample.identity == identity_hash("smile")
    assert sample.ledger == sample_hash("s", "k", "de:0")
    bare = replace(RECORD, identity="")
    nameless = image_text_sample(bare, IMAGE, view, tokenizer, np.random.default_rng(0), True)
    assert nameless.identity == identity_hash("k")
    assert nameless.fusion is not None and nameless.fusion.noise_first_G.shape == (4,)
    assert np.array_equal(nameless.pixels_CHW, sample.pixels_CHW)  # the fusion draws come last


def test_two_captions_of_an_image(tokenizer: TextTokenizer) -> None:
    language_of = {tuple(tokenizer.encode([text], 8)[0]): name for name, texts in CAPTIONS.items() for text in texts}
    drawn = Counter[tuple[str, str]]()
    ledgers = set[int]()
    for seed in range(200):
        sample = image_text_sample(RECORD, IMAGE, TWO, tokenizer, np.random.default_rng(seed), False)
        assert sample.second_ids is not None
        pair = language_of[tuple(sample.ids)], language_of[tuple(sample.second_ids)]
        assert tuple(sample.languages) == pair
        drawn[pair] += 1
        ledgers.add(sample.ledger)
    assert len(drawn) == 6 and all(first != second for first, second in drawn)
    assert min(drawn.values()) > 15
    assert len(ledgers) == 2 * (3 + 6 + 2), "both choices stand in the ledger: 3·1 + 3·2 + 1·2 pairs, in both orders"


def test_a_second_caption_keeps_to_the_languages_with_a_weight(tokenizer: TextTokenizer) -> None:
    record = replace(RECORD, captions={"de": ["da"], "en": ["ea", "eb"], "fr": ["fa"]})
    for weights, expected in (({"en": 1.0}, {("en", "en")}), ({"en": 1.0, "fr": 2.0}, {("en", "fr")})):
        requested = RequestedLanguage(weights, "en")
        samples = [
            image_text_sample(record, IMAGE, TWO, tokenizer, np.random.default_rng(seed), False, requested)
            for seed in range(30)
        ]
        assert {tuple(sample.languages) for sample in samples} == expected
