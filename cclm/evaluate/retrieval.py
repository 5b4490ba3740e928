"""Recall at k from a matrix of scores, ties counted against us.

A query's rank is the number of wrong candidates that score at least as high as its best right one. So a model that
gives every candidate the same score gets recall 0, not 100, and two captions that read the same (two images with
one name in some language) cost a point rather than giving one. Right means: same identity; there may be several.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

SIMILARITY_TOLERANCE = 1e-6
"""Cosines closer than this are ties: one text reaches the matrix product in different places with other roundings."""


@dataclass(frozen=True, kw_only=True)
class Recall:
    """Recall at 1, 5 and 10, in percent."""

    r1: float
    r5: float
    r10: float

    def as_dict(self) -> dict[str, float]:
        """Return `{"r1": …, "r5": …, "r10": …}`."""
        return {"r1": self.r1, "r5": self.r5, "r10": self.r10}


def same_identity(identity_Q: Int[Tensor, " q"], identity_C: Int[Tensor, " c"]) -> Bool[Tensor, "q c"]:
    """Return which candidates are right for which query."""
    return identity_Q[:, None] == identity_C[None, :]


def ranks(
    score_QC: Float[Tensor, "q c"], right_QC: Bool[Tensor, "q c"], *, tolerance: float = SIMILARITY_TOLERANCE
) -> Int[Tensor, " q"]:
    """Return each query's rank, counted from 0; a query without any right candidate gets the number of candidates."""
    best_Q = score_QC.masked_fill(~right_QC, -torch.inf).amax(dim=1)
    rank_Q = ((score_QC >= best_Q[:, None] - tolerance) & ~right_QC).sum(dim=1)
    return torch.where(right_QC.any(dim=1), rank_Q, torch.full_like(rank_Q, score_QC.shape[1]))


def recall(rank_Q: Int[Tensor, " q"]) -> Recall:
    """Return the share of queries whose rank is below 1, 5 and 10, in percent."""
    r1, r5, r10 = (100.0 * float((rank_Q < k).double().mean()) for k in (1, 5, 10))
    return Recall(r1=r1, r5=r5, r10=r10)


def mean_recall(recalls: Sequence[Recall]) -> Recall:
    """Return the mean over languages, each counting the same."""
    number = len(recalls)
    r1, r5, r10 = (sum(getattr(one, name) for one in recalls) / number for name in ("r1", "r5", "r10"))
    return Recall(r1=r1, r5=r5, r10=r10)


def chance(right_QC: Bool[Tensor, "q c"]) -> Recall:
    """Return the expected recall of a random order: 1 − C(n − p, k) / C(n, k) for p right ones among n."""
    num_candidates = right_QC.shape[1]
    values = []
    for k in (1, 5, 10):
        num_drawn = min(k, num_candidates)
        total = comb(num_candidates, num_drawn)
        counts = right_QC.sum(dim=1).tolist()
        miss = {count: comb(num_candidates - count, num_drawn) / total for count in set(counts)}
        values.append(100.0 * sum(1.0 - miss[count] for count in counts) / len(counts))
    return Recall(r1=values[0], r5=values[1], r10=values[2])


def top_candidates(
    score_QC: Float[Tensor, "q c"],
    right_QC: Bool[Tensor, "q c"],
    num_kept: int,
    *,
    tolerance: float = SIMILARITY_TOLERANCE,
) -> Int[Tensor, "q k"]:
    """Return the `num_kept` best candidates of each query (all of them, if there are fewer).

    `right_QC` only breaks ties, against us: a right candidate gives way to a wrong one of the same score.
    """
    num_kept = min(num_kept, score_QC.shape[1])
    return (score_QC - 2 * tolerance * right_QC).topk(num_kept, dim=1).indices
