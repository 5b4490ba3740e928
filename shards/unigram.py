"""A deterministic trainer of Unigram vocabularies (Kudo 2018, "Subword Regularization").

The trainer inside `tokenizers` walks hash maps with a random seed: two runs on the same texts give other scores, and
what is trained on the tokenizer would not repeat. This one has the same steps in a fixed order:

    all frequent substrings -> EM (expected counts -> probabilities) -> drop the pieces that cost least -> … -> size

All words stand side by side in one lattice; its edges are processed by end position, for all words at once.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_PIECE_CHARACTERS = 16
SHRINK_FACTOR = 0.75
"""Part of the pieces that a round keeps."""
EM_STEPS_PER_ROUND = 2
MIN_EXPECTED_COUNT = 0.5
"""A piece that is expected less often is dropped by the M step, as in SentencePiece."""
_DECIMALS = 5
"""Scores are rounded before they are compared, so that the last bits of exp and log on another CPU change nothing."""

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Lattice:
    """All ways to cut strings into pieces. Nodes are positions in strings; an edge is a piece between two of them."""

    start_E: Integers
    """Node where an edge begins; edges are sorted by the end's position in its string, then by end node."""
    end_E: Integers
    piece_E: Integers
    first_S: Integers
    """First node of each string."""
    last_S: Integers
    """Last node of each string."""
    levels: Sequence[tuple[int, int]]
    """Ranges of edges whose ends have the same position in their strings: they can be processed at once."""

    @classmethod
    def of(cls, strings: Sequence[str], number_of: Mapping[str, int], *, whole: bool = True) -> Lattice:
        """Build the lattice of `strings` over the pieces `number_of`; `whole`: a string may be one piece."""
        rows: list[tuple[int, int, int, int]] = []
        first, node = [], 0
        for string in strings:
            first.append(node)
            length = len(string)
            for start in range(length):
                for end in range(start + 1, min(length, start + MAX_PIECE_CHARACTERS) + 1):
                    piece = number_of.get(string[start:end])
                    if piece is not None and (whole or end - start < length):
                        rows.append((end, node + end, node + start, piece))
            node += length + 1
        table = np.array(sorted(rows), dtype=np.int64).reshape(-1, 4)
        lengths = np.array([len(string) for string in strings], dtype=np.int64)
        first_S = np.array(first, dtype=np.int64)
        return cls(
            start_E=table[:, 2],
            end_E=table[:, 1],
            piece_E=table[:, 3],
            first_S=first_S,
            last_S=first_S + lengths,
            levels=_ranges(table[:, 0]),
        )

    def restricted(self, new_number_P: Integers) -> Lattice:
        """Return the lattice without the pieces whose new number is -1."""
        piece_E = new_number_P[self.piece_E]
        keep = piece_E >= 0
        levels, shift = [], np.concatenate([[0], np.cumsum(keep)])
        for begin, stop in self.levels:
            if shift[stop] > shift[begin]:
                levels.append((int(shift[begin]), int(shift[stop])))
        return Lattice(
            start_E=self.start_E[keep],
            end_E=self.end_E[keep],
            piece_E=piece_E[keep],
            first_S=self.first_S,
            last_S=self.last_S,
            levels=levels,
        )

    @property
    def num_nodes(self) -> int:
        """Number of positions, ends included."""
        return int(self.last_S[-1]) + 1

    def expected_counts(self, score_P: Floats, weight_S: Floats) -> Floats:
        """Return how often each piece is expected in all strings, under the probabilities exp(score)."""
        forward_N = np.full(self.num_nodes, -np.inf)
        backward_N = np.full(self.num_nodes, -np.inf)
        forward_N[self.first_S] = 0.0
        backward_N[self.last_S] = 0.0
        score_E = score_P[self.piece_E]
        for begin, stop in self.levels:
            ends, values = self.end_E[begin:stop], forward_N[self.start_E[begin:stop]] + score_E[begin:stop]
            groups = np.flatnonzero(np.concatenate([[True], ends[1:] != ends[:-1]]))
            forward_N[ends[groups]] = np.logaddexp.reduceat(values, groups)
        for begin, stop in reversed(self.levels):
            values = backward_N[self.end_E[begin:stop]] + score_E[begin:stop]
            np.logaddexp.at(backward_N, self.start_E[begin:stop], values)
        total_S = forward_N[self.last_S]
        string_N = np.repeat(np.arange(len(self.first_S)), self.last_S - self.first_S + 1)
        string_E = string_N[self.end_E]
        chance_E = np.exp(forward_N[self.start_E] + score_E + backward_N[self.end_E] - total_S[string_E])
        return np.asarray(
            np.bincount(self.piece_E, chance_E * weight_S[string_E], minlength=len(score_P)), dtype=np.float64
        )

    def best_scores(self, score_P: Floats) -> Floats:
        """Return the score of the best cut of each string; -inf where there is none."""
        best_N = np.full(self.num_nodes, -np.inf)
        best_N[self.first_S] = 0.0
        score_E = score_P[self.piece_E]
        for begin, stop in self.levels:
            ends, values = self.end_E[begin:stop], best_N[self.start_E[begin:stop]] + score_E[begin:stop]
            groups = np.flatnonzero(np.concatenate([[True], ends[1:] != ends[:-1]]))
            best_N[ends[groups]] = np.maximum.reduceat(values, groups)
        return best_N[self.last_S]


def _ranges(sorted_values: Integers) -> list[tuple[int, int]]:
    bounds = np.flatnonzero(np.concatenate([[True], sorted_values[1:] != sorted_values[:-1], [True]]))
    return [(int(begin), int(stop)) for begin, stop in itertools.pairwise(bounds)]


def _seed_pieces(words: Mapping[str, int]) -> dict[str, int]:
    """Return every character, and every substring that occurs at least twice, with its count."""
    counts: dict[str, int] = {}
    for word, weight in words.items():
        for start in range(len(word)):
            for end in range(start + 1, min(len(word), start + MAX_PIECE_CHARACTERS) + 1):
                piece = word[start:end]
                counts[piece] = counts.get(piece, 0) + weight
    return {piece: counts[piece] for piece in sorted(counts) if len(piece) == 1 or counts[piece] >= 2}


def _digamma(value: float) -> float:
    """Return the digamma function of a positive number (asymptotic series after a shift to 7)."""
    shift = 0.0
    while value < 7:
        shift -= 1 / value
        value += 1
    square = 1 / (value * value)
    return shift + math.log(value) - 0.5 / value - square * (1 / 12 - square * (1 / 120 - square / 252))


def _scores_of(count_P: Floats) -> Floats:
    """Return the M step: expected log-probabilities under a Dirichlet posterior, which favours fewer pieces."""
    total = _digamma(float(count_P.sum()))
    score_P = np.array([_digamma(max(float(count), 1e-2)) - total for count in count_P], dtype=np.float64)
    return np.round(score_P, _DECIMALS)


class _Trainer:
    """The pieces that are left, their scores, and the two lattices: of the words, and of the pieces themselves."""

    def __init__(self, words: Mapping[str, int]) -> None:
        seeds = _seed_pieces(words)
        self.pieces = list(seeds)
        self.weight_S = np.array(list(words.values()), dtype=np.float64)
        number_of = {piece: number for number, piece in enumerate(self.pieces)}
        self.words = Lattice.of(list(words), number_of)
        self.inside = Lattice.of(self.pieces, number_of, whole=False)
        weighed = np.array([seeds[piece] * len(piece) for piece in self.pieces], dtype=np.float64)
        self.score_P = np.round(np.log(weighed / weighed.sum()), _DECIMALS)
        self.count_P = weighed
        self.is_character_P = np.array([len(piece) == 1 for piece in self.pieces])

    def keep(self, keep_P: NDArray[np.bool_]) -> None:
        """Drop pieces; characters always stay, so that every word can be cut."""
        keep_P = keep_P | self.is_character_P
        new_number_P = np.where(keep_P, np.cumsum(keep_P) - 1, -1)
        self.words = self.words.restricted(new_number_P)
        inside = self.inside.restricted(new_number_P)
        self.inside = _without_strings(inside, keep_P)
        self.pieces = [piece for piece, kept in zip(self.pieces, keep_P, strict=True) if kept]
        self.score_P, self.count_P = self.score_P[keep_P], self.count_P[keep_P]
        self.is_character_P = self.is_character_P[keep_P]

    def run_em(self) -> None:
        """One E step and one M step."""
        self.count_P = self.words.expected_counts(self.score_P, self.weight_S)
        self.keep(self.count_P >= MIN_EXPECTED_COUNT)
        self.score_P = _scores_of(self.count_P)

    def losses(self) -> Floats:
        """Return what the texts' log-likelihood would lose without each piece, about."""
        instead_P = np.where(self.is_character_P, 0.0, self.inside.best_scores(self.score_P))
        loss_P = np.round(self.count_P * (self.score_P - instead_P), _DECIMALS)
        return np.where(self.is_character_P, np.inf, loss_P)

    def best(self, value_P: Floats, size: int) -> NDArray[np.bool_]:
        """Return a mask of the `size` largest values; equal ones in the order of their pieces."""
        order = np.lexsort((np.arange(len(value_P)), -value_P))
        mask = np.zeros(len(value_P), dtype=np.bool_)
        mask[order[:size]] = True
        return mask


def _without_strings(lattice: Lattice, keep_S: NDArray[np.bool_]) -> Lattice:
    """Return the lattice of the strings that are kept."""
    lengths = lattice.last_S - lattice.first_S
    string_N = np.repeat(np.arange(len(lengths)), lengths + 1)
    new_first_S = np.cumsum(np.concatenate([[0], np.where(keep_S, lengths + 1, 0)]))[:-1]
    keep_E = keep_S[string_N[lattice.end_E]]
    shift_N = (new_first_S - lattice.first_S)[string_N]
    kept = np.concatenate([[0], np.cumsum(keep_E)])
    levels = [(int(kept[begin]), int(kept[stop])) for begin, stop in lattice.levels if kept[stop] > kept[begin]]
    start_E, end_E = lattice.start_E[keep_E], lattice.end_E[keep_E]
    return Lattice(
        start_E=start_E + shift_N[start_E],
        end_E=end_E + shift_N[end_E],
        piece_E=lattice.piece_E[keep_E],
        first_S=new_first_S[keep_S],
        last_S=(new_first_S + lengths)[keep_S],
        levels=levels,
    )


def train_unigram(words: Mapping[str, int], size: int) -> list[tuple[str, float]]:
    """Return at most `size` pieces and their log-probabilities, the likeliest first.

    Args:
        words: pre-tokenized words and how often each occurs; their order does not matter.
        size: number of pieces; every character of the words is kept, even if they are more.
    """
    trainer = _Trainer({word: words[word] for word in sorted(words) if word})
    while True:
        for _ in range(EM_STEPS_PER_ROUND):
            trainer.run_em()
        if len(trainer.pieces) <= size * 11 // 10:
            break
        before = len(trainer.pieces)
        trainer.keep(trainer.best(trainer.losses(), max(size * 11 // 10, int(before * SHRINK_FACTOR))))
        if len(trainer.pieces) == before:
            break  # only characters are left
    trainer.keep(trainer.best(np.where(trainer.is_character_P, np.inf, trainer.score_P), size))
    order = np.lexsort((np.arange(len(trainer.pieces)), -trainer.score_P))
    return [(trainer.pieces[number], float(trainer.score_P[number])) for number in order]
