"""Re-ranking of very many queries, shared out to ranks: each keeps what its own queries find, and nobody all pairs.

    own queries' candidates, both directions ─ images in parts ─ exchange ─▶ pairs of a part, each once
                                                             score (shared) ─▶ each owner's scores ─▶ ranks once more

What stands in a part follows from the candidates, not from how many ranks there are, so that every score is the same on
any number of them. One part, as everything of an ordinary benchmark is, is the pairs of both directions as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cclm.evaluate.rerank import PairNumbers
from cclm.evaluate.retrieval import Nearest

Value = TypeVar("Value")
PAIRS_AT_ONCE = 1 << 22
"""Pairs of a part, about: some 100 bytes each while they are put together, 400 MB."""


@dataclass(frozen=True, kw_only=True)
class Own:
    """Queries of one direction that this rank keeps, and what they found."""

    number_Q: Int[Tensor, " q"]
    """Their numbers among all queries, ascending."""
    found: Nearest


@dataclass(frozen=True, kw_only=True)
class Reranked:
    """The ranks of own queries after re-ranking."""

    text_rank_Q: Int[Tensor, " q"]
    image_rank_Q: Int[Tensor, " q"]
    num_pairs: int
    """That were scored, on all ranks together."""


def alone(value: Value) -> list[Value]:
    """Return every rank's value, of one rank: what ranks tell each other where there is but one."""
    return [value]


def rerank_owned(
    texts: Own,
    images: Own,
    num_images: int,
    score: Callable[[PairNumbers], Float[Tensor, " p"]],
    tolerance: float,
    exchange: Callable[[Tensor], list[Tensor]] = alone,
) -> Reranked:
    """Score the pairs of all ranks' candidates, part by part, and rank the own queries' anew.

    Args:
        texts: own texts, whose candidates are images; on the CPU.
        images: own images, whose candidates are texts.
        num_images: of all ranks.
        score: returns the scores of pairs, the same on every rank.
        tolerance: scores closer than this are ties.
        exchange: returns every rank's tensor. A collective, as `score` may be.
    """
    text_QK, image_QK = texts.found.candidate_QK, images.found.candidate_QK
    score_of_text_QK, score_of_image_QK = (torch.zeros(one.shape) for one in (text_QK, image_QK))
    num_pairs = 0
    for part in _parts(_pairs_of_images(texts, images, num_images, exchange)):
        inside_H2 = ((text_QK >= part.start) & (text_QK < part.stop)).nonzero()
        row_H, column_H = inside_H2.unbind(1)
        forward_H = texts.number_Q[row_H] * num_images + text_QK[row_H, column_H]
        first, last = torch.searchsorted(images.number_Q, torch.tensor([part.start, part.stop])).tolist()
        backward_QK = image_QK[first:last] * num_images + images.number_Q[first:last, None]
        own_P = torch.unique(torch.cat([forward_H, backward_QK.flatten()]))
        number_P = torch.unique(torch.cat(exchange(own_P)))
        score_P = score(PairNumbers(number_P=number_P, num_images=num_images))
        score_of_text_QK[row_H, column_H] = score_P[torch.searchsorted(number_P, forward_H)]
        score_of_image_QK[first:last] = score_P[torch.searchsorted(number_P, backward_QK)]
        num_pairs += len(number_P)
    return Reranked(
        text_rank_Q=texts.found.reranked(score_of_text_QK, tolerance),
        image_rank_Q=images.found.reranked(score_of_image_QK, tolerance),
        num_pairs=num_pairs,
    )


def _pairs_of_images(
    texts: Own, images: Own, num_images: int, exchange: Callable[[Tensor], list[Tensor]]
) -> Int[Tensor, " c"]:
    """Return how many pairs each image is in, those that both directions want twice."""
    own_C = torch.bincount(texts.found.candidate_QK.flatten(), minlength=num_images)
    own_C[images.number_Q] += images.found.candidate_QK.shape[1]
    return torch.stack(exchange(own_C)).sum(0)


def _parts(count_C: Int[Tensor, " c"]) -> Iterator[range]:
    """Yield images that follow each other and have about as many pairs together as go through at once."""
    number_C = (count_C.cumsum(0) - 1).div(PAIRS_AT_ONCE, rounding_mode="floor")
    first = 0
    for size in torch.unique_consecutive(number_C, return_counts=True)[1].tolist():
        yield range(first, first + size)
        first += size


def gathered(
    number_Q: Int[Tensor, " q"],
    columns: Mapping[str, Tensor],
    exchange: Callable[[dict[str, Tensor]], list[dict[str, Tensor]]],
) -> dict[str, Tensor]:
    """Return columns of numbers about all queries, in their order, from those that each rank has about its own."""
    everyone = exchange({"": number_Q, **columns})
    order = torch.cat([one[""] for one in everyone]).argsort()
    return {name: torch.cat([one[name] for one in everyone])[order] for name in columns}
