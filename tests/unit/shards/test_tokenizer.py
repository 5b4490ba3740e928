"""The tokenizer repeats, cuts every text of its training, and loads as a Hugging Face folder."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from cclm.errors import ConfigError
from shards import unigram
from shards.build import build_sets
from shards.tokenizer import texts_of, train_tokenizer, write_tokenizer
from shards.unigram import Lattice, train_unigram
from tests.unit.shards.tiny_corpora import image_plan, text_plan

WORDS = ("red", "green", "small", "dog", "house", "κόκκινο", "σπίτι", "कुत्ता", "घर", "犬", "家", "كلب", "בית")
TEXTS = {f"{a} {b}": 1 + (len(a) * len(b)) % 3 for a, b in product(WORDS, WORDS)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    target = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(train_tokenizer(TEXTS, 120), target, 64)
    return target


def test_the_same_texts_give_the_same_bytes_in_any_order_and_process(folder, tmp_path):
    write_tokenizer(train_tokenizer(dict(reversed(TEXTS.items())), 120), tmp_path / "here", 64)
    program = (
        "import sys; from pathlib import Path\n"
        "from tests.unit.shards.test_tokenizer import TEXTS\n"
        "from shards.tokenizer import train_tokenizer, write_tokenizer\n"
        "write_tokenizer(train_tokenizer(TEXTS, 120), Path(sys.argv[1]), 64)\n"
    )
    subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "there")],
        cwd=Path(__file__).parents[3],
        env={**os.environ, "PYTHONHASHSEED": "7"},
        check=True,
    )
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (folder / name).read_bytes() == (tmp_path / "here" / name).read_bytes()
        assert (folder / name).read_bytes() == (tmp_path / "there" / name).read_bytes()


def test_it_loads_with_auto_tokenizer(folder):
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert tokenizer.is_fast
    special = (tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id)
    assert special == (0, 1, 2, 3)
    assert tokenizer.mask_token_id == len(tokenizer) - 1 == tokenizer.vocab_size - 1
    assert tokenizer.model_max_length == 64
    batch = tokenizer(["Red  DOG", "犬"], padding=True)
    assert [ids[0] for ids in batch["input_ids"]] == [0, 0]
    assert 3 not in batch["input_ids"][0]
    assert batch["input_ids"][1][-1] == 1 and batch["attention_mask"][1][-1] == 0
    assert tokenizer.decode(batch["input_ids"][0], skip_special_tokens=True) == "red dog"
    masked = tokenizer.convert_ids_to_tokens(tokenizer("red <mask> dog")["input_ids"])
    assert masked == ["<s>", "▁red", "<mask>", "▁dog", "</s>"]


def test_it_normalises_and_frames(folder):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.encode("ＤＯＧ").ids == tokenizer.encode("dog").ids  # full width and capital
    assert tokenizer.encode(" red\n\tdog ").ids == tokenizer.encode("red dog").ids
    ids = tokenizer.encode("house").ids
    assert (ids[0], ids[-1]) == (0, 2)
    assert tokenizer.encode("house ☃").ids.count(3) == 1
    assert tokenizer.encode("dog", "house").ids == [*tokenizer.encode("dog").ids, 2, *tokenizer.encode("house").ids[1:]]
    assert all(tokenizer.decode(tokenizer.encode(text).ids) == text for text in TEXTS)


def test_frequent_words_become_one_token(folder):
    vocabulary = [piece for piece, _ in json.loads((folder / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]]
    assert (vocabulary[:4], vocabulary[-1]) == (["<s>", "<pad>", "</s>", "<unk>"], "<mask>")
    assert {"▁dog", "▁house", "▁κόκκινο", "▁घर"} <= set(vocabulary)


def test_a_vocabulary_that_cannot_hold_the_characters_is_refused():
    with pytest.raises(ConfigError, match=r"expected a vocabulary of at least \d+ .*, got 20. Raise --vocab-size"):
        train_tokenizer(TEXTS, 20)
    with pytest.raises(ConfigError, match="got no text at all"):
        train_tokenizer({}, 100)


def test_texts_of_sets_count_a_thing_once(tmp_path):
    build_sets([image_plan(count=4), text_plan(3)], tmp_path)
    texts = texts_of([tmp_path / "images", tmp_path / "texts"])
    assert texts["thing 1"] == 2  # as caption of key-1 and as text_a of g1, though g1 has three pairs
    assert texts["thing 3"] == 1 and texts["דבר 2"] == 1
    assert len(texts) == 4 + 4 + 9


def cuts(word, scores):
    if not word:
        return [[]]
    heads = [word[:end] for end in range(1, len(word) + 1) if word[:end] in scores]
    return [[head, *rest] for head in heads for rest in cuts(word[len(head) :], scores)]


def test_expected_counts_and_best_cuts_are_those_of_all_cuts_written_out():
    pieces = {"a": -1.0, "b": -2.0, "ab": -1.5, "ba": -2.5, "aba": -3.0}
    words = {"aba": 2.0, "b": 1.0, "abab": 3.0}
    number_of = {piece: number for number, piece in enumerate(pieces)}
    score_P = np.array(list(pieces.values()))
    lattice = Lattice.of(list(words), number_of)
    expected, best = dict.fromkeys(pieces, 0.0), []
    for word, weight in words.items():
        ways = cuts(word, pieces)
        scores = [sum(pieces[piece] for piece in way) for way in ways]
        best.append(max(scores))
        total = sum(map(math.exp, scores))
        for way, score in zip(ways, scores, strict=True):
            for piece in way:
                expected[piece] += weight * math.exp(score) / total
    counts = lattice.expected_counts(score_P, np.array(list(words.values())))
    np.testing.assert_allclose(counts, list(expected.values()), rtol=1e-12)
    np.testing.assert_allclose(lattice.best_scores(score_P), best, rtol=1e-12)
    # Without the piece "ab", and with a string never cut as itself.
    rest = lattice.restricted(np.array([0, 1, -1, 2, 3]))
    np.testing.assert_allclose(rest.best_scores(score_P[[0, 1, 3, 4]]), [-3.0, -2.0, -5.0])
    inside = Lattice.of(["aba", "a"], number_of, whole=False)
    np.testing.assert_allclose(inside.best_scores(score_P), [-2.5, -np.inf])


def test_every_character_stays_and_the_size_is_met():
    words = {word: 5 for word in WORDS}
    characters = set("".join(WORDS))
    pieces = train_unigram(words, len(characters) + 5)
    assert len(pieces) == len(characters) + 5
    assert characters <= {piece for piece, _ in pieces}
    assert [score for _, score in pieces] == sorted((score for _, score in pieces), reverse=True)


def test_digamma_is_the_slope_of_log_gamma():
    for value in (0.02, 0.5, 1.0, 3.3, 8.0, 1e6):
        step = value * 1e-4
        slope = (math.lgamma(value + step) - math.lgamma(value - step)) / (2 * step)
        assert unigram._digamma(value) == pytest.approx(slope, rel=1e-5, abs=1e-6)
