from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models

from cclm.data import tokens
from cclm.data.tokens import TextTokenizer, load_tokenizer, pre_caption
from cclm.errors import ConfigError, DataError
from tests.unit.data.data_sets import WORDS, make_tokenizer


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A Dog's (big) house!\n", "a dog s big house"),
        ("well-known and/or  #tag", "well known and or tag"),
        ("<person> waves; \t\t again", "person waves again"),
        ("  Ünïcode, 写真。  ", "ünïcode 写真。"),
        ("?!.", ""),
    ],
)
def test_captions_are_prepared_as_published(text: str, expected: str) -> None:
    assert pre_caption(text) == expected


def test_only_the_first_words_are_kept() -> None:
    assert pre_caption("one two three four", max_words=2) == "one two"


def test_texts_are_framed_and_cut_before_the_end(tokenizer: TextTokenizer) -> None:
    short, long = tokenizer.encode(["aa ab", " ".join(WORDS[:20])], 6)
    assert short == [tokenizer.bos_id, 4, 5, tokenizer.eos_id]
    assert long == [tokenizer.bos_id, 4, 5, 6, 7, tokenizer.eos_id]
    assert tokenizer.encode([" ".join(WORDS[:20])], 40, max_words=3)[0][1:-1] == [4, 5, 6]
    assert (tokenizer.bos_id, tokenizer.pad_id, tokenizer.eos_id) == (0, 1, 2)
    assert tokenizer.mask_id == tokenizer.vocab_size - 1 == 4 + len(WORDS)


def test_the_memory_knows_lengths_apart(tokenizer: TextTokenizer) -> None:
    assert [len(tokenizer.encode(["aa ab ac ad"], length)[0]) for length in (4, 5, 6, 4)] == [4, 5, 6, 4]


def test_a_full_memory_starts_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "CACHED_TEXTS", 3)
    tokenizer = TextTokenizer(make_tokenizer())
    alone = {word: TextTokenizer(make_tokenizer()).encode([word], 8)[0] for word in WORDS[:12]}
    for first in range(10):
        words = [WORDS[first], WORDS[first + 2], WORDS[first], WORDS[first + 1]]
        assert tokenizer.encode(words, 8) == [alone[word] for word in words]


def test_normalisation_is_an_option() -> None:
    plain, published = TextTokenizer(make_tokenizer()), TextTokenizer(make_tokenizer(), "cclm")
    unknown = 3
    assert plain.encode(["AA!"], 8)[0][1:-1] == [unknown]
    assert published.encode(["AA!"], 8)[0][1:-1] == [4]


@pytest.mark.parametrize("text", ["", "  ", "?!"])
def test_an_empty_text_is_a_bad_sample(text: str) -> None:
    with pytest.raises(DataError, match="at least one token") as caught:
        TextTokenizer(make_tokenizer(), "cclm").encode([text], 8)
    assert caught.value.reason == "text_empty"


def test_a_folder_is_loaded_and_pickled(tmp_path: Path) -> None:
    make_tokenizer().save(str(tmp_path / "tokenizer.json"))
    loaded = load_tokenizer(tmp_path, "cclm")
    expected = loaded.encode(["Aa, ab"], 8)
    assert pickle.loads(pickle.dumps(loaded)).encode(["Aa, ab"], 8) == expected == [[0, 4, 5, 2]]
    assert loaded.decode([4, 5]) == "aa ab"


def test_padding_of_the_stored_tokenizer_is_switched_off() -> None:
    stored = make_tokenizer()
    stored.enable_padding(length=9)
    stored.enable_truncation(2)
    assert TextTokenizer(stored).encode(["aa ab ac"], 8) == [[0, 4, 5, 6, 2]]


def test_folders_and_tokenizers_that_will_not_do_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a tokenizer folder with tokenizer\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ConfigError, match=r"a readable tokenizer\.json"):
        load_tokenizer(tmp_path)
    with pytest.raises(ConfigError, match="one without <mask>"):
        TextTokenizer(Tokenizer(models.WordLevel({"<s>": 0, "<pad>": 1, "</s>": 2}, unk_token="<s>")))
