from __future__ import annotations

import json
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors, trainers

from cclm.data.vocabulary import batches, kept_ids, prune_content, prune_settings, used_ids
from cclm.errors import ConfigError

CORPUS = [
    f"{word} {other}"
    for word in ("red", "reading", "cars", "carpet")
    for other in ("lower", "slower", "newest", "blau")
]
MINE = ["reading cars", "red carpet", "newest car"]
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]


def trained(kind: str) -> Tokenizer:
    model = {
        "Unigram": models.Unigram(),
        "BPE": models.BPE(unk_token="<unk>"),
        "WordPiece": models.WordPiece(unk_token="<unk>"),
    }
    trainer = {
        "Unigram": trainers.UnigramTrainer(vocab_size=60, special_tokens=SPECIAL, unk_token="<unk>"),
        "BPE": trainers.BpeTrainer(vocab_size=90, special_tokens=SPECIAL),
        "WordPiece": trainers.WordPieceTrainer(vocab_size=90, special_tokens=SPECIAL),
    }
    tokenizer = Tokenizer(model[kind])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace() if kind == "Unigram" else pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(CORPUS * 20, trainer[kind])
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return tokenizer


def pruned(tokenizer: Tokenizer, texts: list[str]) -> tuple[Tokenizer, list[int]]:
    content = json.loads(tokenizer.to_str())
    keep = kept_ids(content, used_ids(tokenizer, texts))
    return Tokenizer.from_str(json.dumps(prune_content(content, keep))), keep


@pytest.mark.parametrize("kind", ["Unigram", "BPE", "WordPiece"])
def test_the_same_pieces_with_fewer_of_them(kind: str) -> None:
    before = trained(kind)
    after, keep = pruned(before, MINE)
    assert after.get_vocab_size() == len(keep) < before.get_vocab_size()
    for text in [*MINE, "reading carpet", "<mask> cars"]:
        old, new = before.encode(text), after.encode(text)
        assert new.tokens == old.tokens
        assert [keep[number] for number in new.ids] == old.ids
    assert [after.token_to_id(token) for token in SPECIAL] == [0, 1, 2, 3]
    assert after.token_to_id("<mask>") == len(keep) - 1
    assert set(after.get_vocab().values()) == set(range(len(keep)))


def test_an_unknown_character_costs_what_it_cost() -> None:
    before = trained("Unigram")
    strange = ["réading cars", "rédéd"]
    after, keep = pruned(before, strange)
    content, fewer = (json.loads(item.to_str())["model"]["vocab"] for item in (before, after))
    assert min(score for _, score in content) == min(score for _, score in fewer)
    for text in strange:
        assert after.encode(text).tokens == before.encode(text).tokens
    assert keep == sorted(keep)


def test_parts_of_merged_pieces_stay() -> None:
    before = trained("BPE")
    after, _ = pruned(before, ["reading"])
    content = json.loads(after.to_str())["model"]
    for first, second in content["merges"]:
        assert {first, second, first + second} <= set(content["vocab"])
    assert len(content["merges"]) < len(json.loads(before.to_str())["model"]["merges"])


def test_merges_as_strings_too() -> None:
    content = json.loads(trained("BPE").to_str())
    content["model"]["merges"] = [" ".join(merge) for merge in content["model"]["merges"]]
    keep = kept_ids(content, [content["model"]["vocab"]["reading"]])
    assert all(isinstance(merge, str) for merge in prune_content(content, keep)["model"]["merges"])


def test_byte_pieces_stay_with_byte_fallback() -> None:
    pieces = [["<unk>", 0.0], ["<0x41>", -1.0], ["<0x42>", -2.0], ["a", -1.0]]
    content: dict[str, Any] = {
        "model": {"type": "Unigram", "unk_id": 0, "vocab": pieces, "byte_fallback": True},
        "added_tokens": [],
    }
    assert kept_ids(content, []) == [0, 1, 2]


@pytest.mark.parametrize(
    ("processor", "expected"),
    [
        ({"type": "RobertaProcessing", "sep": ["</s>", 9], "cls": ["<s>", 4]}, {"sep": ["</s>", 2], "cls": ["<s>", 0]}),
        (
            {"type": "Sequence", "processors": [{"special_tokens": {"<s>": {"id": "<s>", "ids": [4]}}}]},
            {"processors": [{"special_tokens": {"<s>": {"id": "<s>", "ids": [0]}}}]},
        ),
    ],
)
def test_numbers_inside_a_post_processor(processor: dict[str, Any], expected: dict[str, Any]) -> None:
    content: dict[str, Any] = {
        "model": {"type": "WordPiece", "vocab": {}},
        "added_tokens": [{"id": 9, "content": "</s>"}],
        "padding": {"pad_id": 7},
        "post_processor": processor,
    }
    found = prune_content(content, [4, 7, 9])
    assert found["post_processor"] == {"type": processor["type"], **expected}
    assert found["padding"] == {"pad_id": 1}
    assert found["added_tokens"] == [{"id": 2, "content": "</s>"}]
    assert content["padding"] == {"pad_id": 7}, "the original is not touched"


def test_settings_are_numbered_anew() -> None:
    settings = {"added_tokens_decoder": {"0": {"content": "<s>"}, "9": {"content": "<mask>"}}, "x": 1}
    assert prune_settings(settings, [0, 4, 9]) == {
        "added_tokens_decoder": {"0": {"content": "<s>"}, "2": {"content": "<mask>"}},
        "x": 1,
    }
    assert prune_settings({"x": 1}, [0]) == {"x": 1}


def test_another_kind_of_tokenizer_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected a Unigram, BPE or WordPiece model, got WordLevel"):
        kept_ids({"model": {"type": "WordLevel", "vocab": {}}, "added_tokens": []}, [])


def test_batches_hold_everything_once() -> None:
    texts = [str(number) for number in range(7)]
    assert [len(batch) for batch in batches(texts, 3)] == [3, 3, 1]
    assert [text for batch in batches(texts, 3) for text in batch] == texts
