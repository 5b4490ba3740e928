"""Fewer pieces in a tokenizer, and the same pieces for every text that it was made fewer for. No torch.

What is kept: the pieces that the texts use, special tokens, and what the model needs to come to the same pieces:

Unigram    the best path through a word stays the best when other pieces go; a piece with the lowest score stays,
           because the price of an unknown character is counted from it
BPE        the parts that the used pieces are merged from; a merge stays if its two parts and its result stay
WordPiece  nothing more: the longest piece that fits is still the longest
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from cclm.errors import ConfigError

Content = dict[str, Any]
"""A tokenizer.json."""


def used_ids(tokenizer: Any, texts: Iterable[str], batch_size: int = 4096) -> dict[int, int]:
    """How often each id occurs in the texts, special tokens around them not counted."""
    counts: Counter[int] = Counter()
    for batch in batches(texts, batch_size):
        for encoding in tokenizer.encode_batch(batch, add_special_tokens=False):
            counts.update(encoding.ids)
    return dict(counts)


def batches(texts: Iterable[str], size: int = 4096) -> Iterator[list[str]]:
    """Yield the texts in lists of `size`; the last may be shorter."""
    source = iter(texts)
    while batch := list(islice(source, size)):
        yield batch


def kept_ids(content: Content, used: Iterable[int]) -> list[int]:
    """The ids that stay, ascending; a row of the new embeddings for each (ConfigError: a tokenizer of another kind)."""
    model, keep = content["model"], set(used)
    keep |= {token["id"] for token in content["added_tokens"]}
    vocabulary = _vocabulary(model)
    unknown = model.get("unk_token")
    if model["type"] == "Unigram":
        pieces = model["vocab"]
        keep.add(min(range(len(pieces)), key=lambda number: pieces[number][1]))
        keep |= set() if model.get("unk_id") is None else {model["unk_id"]}
    elif unknown is not None:
        keep.add(vocabulary[unknown])
    if model.get("byte_fallback"):
        keep |= {number for piece, number in vocabulary.items() if piece.startswith("<0x")}
    return sorted(_with_parts(model, keep, vocabulary) if model["type"] == "BPE" else keep)


def prune_content(content: Content, keep: Sequence[int]) -> Content:
    """The tokenizer.json of the kept ids, numbered anew in their order."""
    new_id = {old: new for new, old in enumerate(keep)}
    pruned = copy.deepcopy(content)
    model = pruned["model"]
    if model["type"] == "Unigram":
        model["vocab"] = [piece for number, piece in enumerate(model["vocab"]) if number in new_id]
        model["unk_id"] = new_id.get(model.get("unk_id"))
    else:
        model["vocab"] = {piece: new_id[number] for piece, number in model["vocab"].items() if number in new_id}
    if model["type"] == "BPE":
        pieces = model["vocab"]
        model["merges"] = [
            merge for merge in model["merges"] if all(part in pieces for part in (*_pair(merge), "".join(_pair(merge))))
        ]
    for token in pruned["added_tokens"]:
        token["id"] = new_id[token["id"]]
    if pruned.get("padding"):
        pruned["padding"]["pad_id"] = new_id[pruned["padding"]["pad_id"]]
    if pruned.get("post_processor"):
        pruned["post_processor"] = _renumber(pruned["post_processor"], new_id)
    return pruned


def prune_settings(settings: Content, keep: Sequence[int]) -> Content:
    """A tokenizer_config.json with the new numbers of its added tokens."""
    new_id = {old: new for new, old in enumerate(keep)}
    decoder = settings.get("added_tokens_decoder")
    if decoder is None:
        return settings
    numbered = {str(new_id[int(number)]): token for number, token in decoder.items() if int(number) in new_id}
    return {**settings, "added_tokens_decoder": numbered}


def _vocabulary(model: Mapping[str, Any]) -> dict[str, int]:
    """Piece → id (ConfigError: a kind of model whose pieces cannot be told apart)."""
    if model["type"] == "Unigram":
        return {piece: number for number, (piece, _) in enumerate(model["vocab"])}
    if model["type"] in ("BPE", "WordPiece"):
        return dict(model["vocab"])
    raise ConfigError(
        where="tokenizer.json",
        expected="a Unigram, BPE or WordPiece model",
        got=str(model["type"]),
        do="Prune the vocabulary of another tokenizer.",
    )


def _with_parts(model: Mapping[str, Any], keep: set[int], vocabulary: Mapping[str, int]) -> set[int]:
    parts: dict[str, list[tuple[str, str]]] = {}
    for merge in model["merges"]:
        first, second = _pair(merge)
        parts.setdefault(first + second, []).append((first, second))
    piece_of = {number: piece for piece, number in vocabulary.items()}
    waiting, found = [piece_of[number] for number in keep if number in piece_of], set(keep)
    while waiting:
        for pair in parts.get(waiting.pop(), []):
            fresh = [part for part in pair if vocabulary[part] not in found]
            found |= {vocabulary[part] for part in fresh}
            waiting += fresh
    return found


def _pair(merge: str | Sequence[str]) -> tuple[str, str]:
    """A merge in either of its two forms."""
    first, second = merge.split(" ") if isinstance(merge, str) else merge
    return first, second


def _renumber(value: Any, new_id: Mapping[int, int]) -> Any:
    """Ids inside a post-processor: in lists called `ids`, and behind a token in `sep` and `cls`."""
    if isinstance(value, list):
        return [_renumber(item, new_id) for item in value]
    if not isinstance(value, dict):
        return value
    found = {}
    for name, item in value.items():
        if name == "ids":
            found[name] = [new_id[number] for number in item]
        elif name in ("sep", "cls") and isinstance(item, list):
            found[name] = [item[0], new_id[item[1]]]
        else:
            found[name] = _renumber(item, new_id)
    return found
