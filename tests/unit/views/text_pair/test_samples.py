"""One group of translations → one sample of the text-pair view."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from cclm.data.ledger import identity_hash, sample_hash
from cclm.data.mix_plan import RequestedLanguage
from cclm.data.tokens import TextTokenizer
from cclm.errors import DataError
from cclm.types import TextPair
from cclm.views.text_pair.view import choose_pairs, text_pair_sample
from tests.tiny_views import TEXT_PAIR


def group(count: int) -> list[TextPair]:
    return [
        TextPair(text_a="aa", lang_a="en", text_b=f"b{chr(97 + index)}", lang_b="x", source="s", group="g")
        for index in range(count)
    ]


def test_a_sample_is_told_by_its_hashes(tokenizer: TextTokenizer) -> None:
    one = replace(TEXT_PAIR, pairs_per_sample=1)
    sample = text_pair_sample(group(1), one, tokenizer, np.random.default_rng(0), False)
    assert sample.fusion is None and sample.languages == ["en", "x"]
    assert sample.identity == identity_hash("g") and sample.ledger == sample_hash("s", "g", "0")
    nameless = [replace(pair, group="") for pair in group(1)]
    assert text_pair_sample(nameless, one, tokenizer, np.random.default_rng(0), False).identity == identity_hash("aa")


def test_tlm_masks_both_sentences_in_one_text(tokenizer: TextTokenizer) -> None:
    view = replace(TEXT_PAIR, tlm=True)
    pairs = [replace(pair, text_b="bb bc bd be bf bg bh") for pair in group(3)]
    memory, query = ([*tokenizer.encode([text], view.max_tokens)[0]] for text in ("aa", pairs[0].text_b))
    lengths, swaps = set(), set()
    for seed in range(8):
        sample = text_pair_sample(pairs, view, tokenizer, np.random.default_rng(seed), True)
        assert sample.fusion is not None
        masked = sample.fusion.masked
        whole = [*query, *memory[1:]] if sample.swapped else [*memory, *query[1:]]
        restored = masked.ids_L.copy()
        restored[masked.column_T] = masked.label_T
        assert restored.tolist() == whole
        lengths.add(len(whole))
        swaps.add(sample.swapped)
    assert lengths == {3 + 8 - 1} and swaps == {True, False}


def test_translations_are_drawn_without_repetition_if_there_are_enough(tokenizer: TextTokenizer) -> None:
    seen: Counter[tuple[int, ...]] = Counter()  # three pairs of each sample
    for seed in range(60):
        sample = text_pair_sample(group(5), TEXT_PAIR, tokenizer, np.random.default_rng(seed), False)
        assert len({tuple(ids) for ids in sample.others}) == 3
        seen.update(tuple(ids) for ids in sample.others)
    assert len(seen) == 5
    small = text_pair_sample(group(2), TEXT_PAIR, tokenizer, np.random.default_rng(0), False)
    assert len(small.others) == 3 and len({tuple(ids) for ids in small.others}) <= 2
    assert small.anchor == tokenizer.encode(["aa"], 8)[0]


def test_the_masked_text_is_the_one_in_the_images_role(tokenizer: TextTokenizer) -> None:
    pairs = [replace(pair, text_b="bb bc bd be") for pair in group(3)]
    for probability, length in ((0.0, 3), (1.0, 6)):
        chosen = replace(TEXT_PAIR, swap_probability=probability)
        sample = text_pair_sample(pairs, chosen, tokenizer, np.random.default_rng(0), True)
        assert sample.fusion is not None and len(sample.fusion.masked.ids_L) == length


def test_noise_is_gumbel(tokenizer: TextTokenizer) -> None:
    view = replace(TEXT_PAIR, negative_group=1024)
    fusion = text_pair_sample(group(3), view, tokenizer, np.random.default_rng(0), True).fusion
    assert fusion is not None
    noise = np.concatenate([fusion.noise_first_G, fusion.noise_second_G])
    assert noise.dtype == np.float32
    assert noise.mean() == pytest.approx(0.5772, abs=0.06)
    assert noise.var() == pytest.approx(np.pi**2 / 6, abs=0.15)


def test_translations_are_chosen_by_weight() -> None:
    requested = RequestedLanguage({"de": 1.0, "fr": 3.0}, None)
    generator = np.random.default_rng(0)
    first = Counter(choose_pairs(["de", "en", "fr"], 1, generator, requested)[0] for _ in range(2000))
    assert set(first) == {0, 2} and first[2] == pytest.approx(1500, rel=0.05)
    assert sorted(choose_pairs(["de", "en", "fr"], 2, generator, requested)) == [0, 2]
    chosen = choose_pairs(["de", "en", "fr", "de"], 5, generator, RequestedLanguage(requested.weights, "de"))
    assert len(chosen) == 5 and set(chosen) == {0, 2, 3} and set(chosen[:2]) == {0, 3}
    with pytest.raises(DataError) as caught:
        choose_pairs(["en"], 1, generator, requested)
    assert caught.value.reason == "translation_missing"


def test_small_weights_are_weights_like_others() -> None:
    requested = RequestedLanguage({"de": 1e-4, "en": 1e-4}, None)
    generator = np.random.default_rng(0)
    first = Counter(choose_pairs(["de", "en"], 1, generator, requested)[0] for _ in range(2000))
    assert 900 < first[0] < 1100
