"""More pieces in a Unigram tokenizer: those of a corpus that it cuts into crumbs today. No torch.

    texts ─ the tokenizer's own normaliser and words ─▶ sentencepiece ─▶ missing pieces, those first that save most
        ─▶ behind the old pieces, whose ids stay

A new piece's score is the trainer's, moved onto the scale of the old scores (the median over the pieces that both
have), but always above the path through the old pieces, so that it is taken, and never below the lowest old score, from
which the price of an unknown character is counted.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from cclm.data.train_pieces import cut_words, train_pieces
from cclm.data.vocabulary import Content
from cclm.errors import ConfigError

SPACE = "▁"
"""What stands for the space before a word."""
UNKNOWN_PENALTY = 10.0
"""How far `tokenizers` puts an unknown character's score below the lowest of the pieces."""
ABOVE = 1e-3
"""How much better than its old path a new piece is at least."""


@dataclass(frozen=True, kw_only=True)
class NewPiece:
    """A piece that the tokenizer lacks."""

    text: str
    score: float
    parts: tuple[int, ...]
    """Ids of the pieces that it is cut into today; empty if one of them stands for an unknown character."""


def checked_content(content: Content) -> Content:
    """Return a Unigram tokenizer.json in which every added token is a piece too, as in XLM-R's.

    Raises:
        ConfigError: another kind of model, or one whose ids have gaps.
    """
    checked = copy.deepcopy(content)
    model = checked["model"]
    if model["type"] != "Unigram":
        raise _error("a Unigram tokenizer, as XLM-R and its kin have", model["type"], "Give such a folder.")
    if model.get("unk_id") is None:
        raise _error("a tokenizer with a piece for unknown characters", "none (unk_id)", "Give another folder.")
    pieces = model["vocab"]
    for token in sorted(checked["added_tokens"], key=lambda token: int(token["id"])):
        if token["id"] == len(pieces):
            pieces.append([token["content"], 0.0])
        elif token["id"] > len(pieces):
            raise _error("ids without gaps", f"{len(pieces)} pieces and {token['id']}", "Save the tokenizer again.")
    return checked


def choose_pieces(tokenizer: Any, content: Content, texts: Iterable[str], most: int) -> list[NewPiece]:
    """Return at most `most` pieces that save most of the corpus's tokens, the best first; `content` is checked."""
    words = count_words(tokenizer, texts)
    if not words:
        return []
    pieces = content["model"]["vocab"]
    old: dict[str, float] = {piece: score for piece, score in pieces}
    unknown, lowest = content["model"]["unk_id"], min(old.values())
    wanted, characters = most, len(set().union(*words)) + 1
    while True:
        trained = train_pieces(words, characters + wanted, 1.0, "Give more texts, or another number of --pieces.")
        found = [(piece, score) for piece, score in trained if piece not in old]
        if len(found) >= most or len(trained) < characters + wanted:
            break
        wanted *= 2
    shift = median([old[piece] - score for piece, score in trained if piece in old] or [0.0])
    gains: dict[str, float] = {}
    new = {}
    for piece, score in found:
        path = [token.id for token in tokenizer.model.tokenize(piece)]
        costs = [lowest - UNKNOWN_PENALTY if number == unknown else pieces[number][1] for number in path]
        gains[piece] = math.exp(score) * (len(path) - 1 + path.count(unknown))  # an unknown character counts twice
        parts = () if unknown in path else tuple(path)
        new[piece] = NewPiece(text=piece, score=max(score + shift, math.fsum(costs) + ABOVE, lowest), parts=parts)
    best = sorted((piece for piece in new if gains[piece] > 0), key=lambda piece: (-gains[piece], piece))
    return [new[piece] for piece in best[:most]]


def count_words(tokenizer: Any, texts: Iterable[str]) -> Mapping[str, int]:
    """How often each word occurs, as the tokenizer cuts texts into words, without the sign for the space before it.

    Distinct words are held in memory; where a script has no spaces, whole texts are words.
    """
    words: Counter[str] = Counter()
    for text in texts:
        plain = tokenizer.normalizer.normalize_str(text) if tokenizer.normalizer is not None else text
        for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(plain):
            words.update(part for part in cut_words(" ".join(word.replace(SPACE, " ").split())) if part)
    return words


def grown_content(content: Content, new: Sequence[NewPiece]) -> Content:
    """The tokenizer.json with new pieces behind its old ones (of `checked_content`)."""
    grown = copy.deepcopy(content)
    grown["model"]["vocab"] += [[piece.text, piece.score] for piece in new]
    return grown


def _error(expected: str, got: str, do: str) -> ConfigError:
    return ConfigError(where="tokenizer.json", expected=expected, got=got, do=do)
