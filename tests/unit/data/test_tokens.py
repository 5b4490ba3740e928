from __future__ import annotations

import pickle
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from cclm.data import tokens
from cclm.data.tokens import TextTokenizer, load_tokenizer, pre_caption, read_special_as_text
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
    with pytest.raises(DataError) as caught:
        TextTokenizer(make_tokenizer(), "cclm").encode([text], 8)
    assert caught.value.reason == "text_empty"


def test_half_a_character_is_a_bad_sample() -> None:
    with pytest.raises(DataError) as caught:
        TextTokenizer(make_tokenizer()).encode(["AA", "half \ud83d"], 8)
    assert caught.value.reason == "text_encoding"


def test_a_folder_is_loaded(tmp_path: Path) -> None:
    make_tokenizer().save(str(tmp_path / "tokenizer.json"))
    loaded = load_tokenizer(tmp_path, "cclm")
    expected = loaded.encode(["Aa, ab"], 8)
    assert expected == [[0, 4, 5, 2]]
    assert loaded.decode([4, 5]) == "aa ab"


def test_padding_of_the_stored_tokenizer_is_switched_off() -> None:
    stored = make_tokenizer()
    stored.enable_padding(length=9)
    stored.enable_truncation(2)
    assert TextTokenizer(stored).encode(["aa ab ac"], 8) == [[0, 4, 5, 6, 2]]


WRITTEN_OUT = ("<mask>", "a <mask> b", "<s> a </s>", "a<pad>b", "<MASK> a", "＜ｍａｓｋ＞", "<mask><mask>", "<unk> a")


def unigram_tokenizer() -> Tokenizer:
    """Return one whose special tokens are pieces of its vocabulary, too, as XLM-RoBERTa's are."""
    pieces = [*((token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>")), *((letter, -3.0) for letter in "▁<>/ab")]
    pieces += [("▁<", -2.0), ("mask", -4.0), ("pad", -4.0), ("unk", -4.0), ("s", -4.0), ("<mask>", 0.0)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=3))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", AddedToken("<mask>", lstrip=True, normalized=False)])
    return tokenizer


@pytest.mark.parametrize("text", WRITTEN_OUT)
def test_a_special_token_that_a_text_spells_out_is_text(text: str) -> None:
    tokenizer = TextTokenizer(unigram_tokenizer())
    special = {tokenizer.bos_id, tokenizer.pad_id, tokenizer.eos_id, tokenizer.mask_id, 3}
    (ids,) = tokenizer.encode([text], 40)
    assert not special & {*ids[1:-1]} and (ids[0], ids[-1]) == (0, 2)
    assert tokenizer.decode(ids).replace(" ", "") == unicodedata.normalize("NFKC", text).lower().replace(" ", "")


@given(st.text(alphabet="<>/ab maskpdun", max_size=20))
def test_texts_without_a_special_token_keep_their_ids(text: str) -> None:
    tokenizer = TextTokenizer(unigram_tokenizer())
    ids = unigram_tokenizer().encode(text.strip(), add_special_tokens=False).ids
    if ids and not any(token in text for token in ("<s>", "<pad>", "</s>", "<unk>", "<mask>")):
        assert tokenizer.encode([text], 40) == [[0, *ids, 2]]


def test_a_tokenizer_is_changed_once() -> None:
    tokenizer = unigram_tokenizer()
    read_special_as_text(tokenizer)
    before = tokenizer.to_str()
    read_special_as_text(tokenizer)
    assert tokenizer.to_str() == before
    bare = Tokenizer(models.WordLevel({"<s>": 0, "a": 1}, unk_token="<s>"))
    bare.add_special_tokens(["<s>"])
    read_special_as_text(bare)  # it has no pre-tokenizer of its own
    assert bare.pre_tokenizer.pre_tokenize_str("a<s>")[1:] == [("<", (1, 2)), ("s>", (2, 4))]


def test_folders_and_tokenizers_that_will_not_do_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a tokenizer folder with tokenizer\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ConfigError, match=r"a readable tokenizer\.json"):
        load_tokenizer(tmp_path)
    with pytest.raises(ConfigError, match="one without <mask>"):
        TextTokenizer(Tokenizer(models.WordLevel({"<s>": 0, "<pad>": 1, "</s>": 2}, unk_token="<s>")))


def test_a_copy_would_forget_that_special_tokens_are_text() -> None:
    with pytest.raises(TypeError, match="load it anew"):
        pickle.dumps(TextTokenizer(make_tokenizer()))
