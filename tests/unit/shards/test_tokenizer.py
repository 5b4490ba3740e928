"""The tokenizer repeats, cuts every text of its training, and loads as a Hugging Face folder."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tracemalloc
from collections import Counter
from itertools import product
from pathlib import Path

import pytest
import sentencepiece

from cclm.errors import ConfigError
from shards import tokenizer as tokenizer_module
from shards.build import build_sets
from shards.tokenizer import NUM_THREADS, sample_texts, train_tokenizer, write_tokenizer
from tests.unit.shards.tiny_corpora import image_plan, text_plan

WORDS = ("red", "green", "small", "dog", "house", "κόκκινο", "σπίτι", "कुत्ता", "घर", "犬", "家", "كلب", "בית")
TEXTS = [f"{a} {b}" for a, b in product(WORDS, WORDS) for _ in range(1 + (len(a) * len(b)) % 3)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(train_tokenizer(TEXTS, 120), target, 64, {"seed": 0})
    return target


@pytest.mark.slow
def test_the_same_texts_give_the_same_bytes_in_any_order_and_process(folder: Path, tmp_path: Path) -> None:
    write_tokenizer(train_tokenizer(TEXTS[::-1], 120), tmp_path / "here", 64, {"seed": 0})
    program = (
        "import sys; from pathlib import Path\n"
        "from tests.unit.shards.test_tokenizer import TEXTS\n"
        "from shards.tokenizer import train_tokenizer, write_tokenizer\n"
        "write_tokenizer(train_tokenizer(TEXTS, 120), Path(sys.argv[1]), 64, {'seed': 0})\n"
    )
    subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "there")],
        cwd=Path(__file__).parents[3],
        env={**os.environ, "PYTHONHASHSEED": "7"},
        check=True,
    )
    for name in ("tokenizer.json", "tokenizer_config.json", "training.json"):
        assert (folder / name).read_bytes() == (tmp_path / "here" / name).read_bytes()
        assert (folder / name).read_bytes() == (tmp_path / "there" / name).read_bytes()


def test_it_loads_with_auto_tokenizer(folder: Path) -> None:
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
    asked = tokenizer("red <mask> dog", split_special_tokens=False)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(asked) == ["<s>", "▁red", "<mask>", "▁dog", "</s>"]
    assert tokenizer.mask_token_id not in tokenizer("red <mask> dog")["input_ids"]


def test_it_normalises_and_frames(folder: Path) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.encode("ＤＯＧ").ids == tokenizer.encode("dog").ids  # full width and capital
    assert tokenizer.encode(" red\n\tdog ").ids == tokenizer.encode("red dog").ids
    ids = tokenizer.encode("house").ids
    assert (ids[0], ids[-1]) == (0, 2)
    assert tokenizer.encode("house ☃").ids.count(3) == 1
    assert tokenizer.encode("dog", "house").ids == [*tokenizer.encode("dog").ids, 2, *tokenizer.encode("house").ids[1:]]
    assert all(tokenizer.decode(tokenizer.encode(text).ids) == text for text in TEXTS)


def test_frequent_words_become_one_token(folder: Path) -> None:
    vocabulary = [piece for piece, _ in json.loads((folder / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]]
    assert (vocabulary[:4], vocabulary[-1]) == (["<s>", "<pad>", "</s>", "<unk>"], "<mask>")
    assert {"▁dog", "▁house", "▁κόκκινο", "▁घर"} <= set(vocabulary)


def test_what_it_was_made_of_stands_beside_it(folder: Path) -> None:
    training = json.loads((folder / "training.json").read_text("utf-8"))
    assert training["num_threads"] == NUM_THREADS == 1 and training["seed"] == 0
    assert training["trainer"] == f"sentencepiece {sentencepiece.__version__}"


def test_a_vocabulary_that_cannot_hold_the_characters_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"expected a vocabulary of at least \d+ .*, got 20. Raise --vocab-size"):
        train_tokenizer(TEXTS, 20)
    with pytest.raises(ConfigError, match="got no text at all"):
        train_tokenizer([], 100)
    with pytest.raises(ConfigError, match="got no text at all"):
        train_tokenizer([" ", "\n"], 100)


def test_rare_characters_may_be_left_out() -> None:
    texts = [*["ab ba"] * 200, "cab", "☃"]
    least = len("▁ab") + 5
    assert train_tokenizer(texts, 40).token_to_id("☃") is not None
    tokenizer = train_tokenizer(texts, least, 0.99)
    assert tokenizer.token_to_id("☃") is None and tokenizer.encode("☃").ids.count(3) == 1
    with pytest.raises(ConfigError, match="or lower --character-coverage"):
        train_tokenizer(texts, least)


def test_a_word_that_always_stands_before_the_same_one_is_one_piece() -> None:
    tokenizer = train_tokenizer(["smiling face"] * 30 + ["sad mule"] * 30 + [*"abcdefghijklmn"], 60)
    assert tokenizer.encode("smiling face", add_special_tokens=False).tokens == ["▁smiling", "▁face"]


def test_texts_without_spaces_however_long() -> None:
    words = ["猫が", "犬と", "走る", "食べる", "小さい"]
    draw = random.Random(0)
    texts = ["".join(draw.choices(words, k=7)) for _ in range(400)]
    tokenizer = train_tokenizer([*texts, "".join(texts)], 60)
    assert len(tokenizer.encode("小さい犬と猫が走る", add_special_tokens=False).ids) <= 7
    assert tokenizer.decode(tokenizer.encode(texts[3]).ids) == texts[3]


def test_a_special_token_in_the_texts_is_no_piece_of_its_own() -> None:
    tokenizer = train_tokenizer(["<mask> dog", "<s> dog", "dog"] * 40, 40)
    vocabulary = [piece for piece, _ in json.loads(tokenizer.to_str())["model"]["vocab"]]
    assert len(set(vocabulary)) == len(vocabulary)
    ids = tokenizer.encode("<mask> dog", add_special_tokens=False).ids
    assert not {*ids} & {0, 1, 2, 3, tokenizer.token_to_id("<mask>")}


def test_a_things_text_counts_once_in_whatever_order_the_sets_come(tmp_path: Path) -> None:
    build_sets([image_plan(count=4), text_plan(3)], tmp_path)
    sets = [tmp_path / "images", tmp_path / "texts"]
    sample = sample_texts(sets, 1000)
    counts = Counter(sample.texts)
    assert counts["thing 1"] == 2  # as caption of key-1 and as text_a of g1, though g1 has three pairs
    assert counts["thing 3"] == 1 and counts["דבר 2"] == 1
    assert len(counts) == 4 + 4 + 9 and sample.num_texts > len(sample.texts)
    assert sample_texts(sets[::-1], 1000) == sample


def test_a_sample_is_seeded_bounded_and_fair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    things = [(f"t{number % 900}", "en", f"text {number % 900}") for number in range(2000)]
    monkeypatch.setattr(tokenizer_module, "texts_of_things", lambda _folders: iter(things))
    few = sample_texts([], 300, seed=1)
    assert len(set(few.texts)) == len(few.texts) == 300 and few.num_texts == 2000
    assert few == sample_texts([], 300, seed=1) != sample_texts([], 300, seed=2)
    assert {*few.texts} < {*sample_texts([], 600, seed=1).texts}, "a larger sample holds the smaller one"
    things.reverse()
    assert sample_texts([], 300, seed=1) == few
    assert 80 < sum(int(text.split()[1]) < 300 for text in few.texts) < 120, "a third of a third"
    assert len(sample_texts([], 5000).texts) == 900


def test_memory_holds_the_sample_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    things = ((f"t{number}", "en", f"text {number} " * 20) for number in range(20_000))  # 7 MB
    monkeypatch.setattr(tokenizer_module, "texts_of_things", lambda _folders: things)
    tracemalloc.start()
    assert len(sample_texts([], 200).texts) == 200
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 1_000_000
