"""Recall at k from a matrix of scores, ties counted against us; and how sure it is.

A query's rank is the number of wrong candidates that score at least as high as its best right one. So a model that
gives every candidate the same score gets recall 0, not 100, and two captions that read the same (two images with
one name in some language) cost a point rather than giving one. Right means: same identity; there may be several.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import comb, sqrt

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

SIMILARITY_TOLERANCE = 1e-6
"""Cosines closer than this are ties: one text reaches the matrix product in different places with other roundings."""


Recall = Mapping[str, float]
"""Recall at 1, 5 and 10, in percent: "r1", "r5", "r10"."""
CUTS = (1, 5, 10)


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
    return {f"r{k}": 100.0 * float((rank_Q < k).double().mean()) for k in CUTS}


def mean_recall(recalls: Sequence[Recall]) -> Recall:
    """Return the mean over languages, each counting the same."""
    return {name: sum(one[name] for one in recalls) / len(recalls) for name in recalls[0]}


def chance(right_QC: Bool[Tensor, "q c"]) -> Recall:
    """Return the expected recall of a random order: 1 − C(n − p, k) / C(n, k) for p right ones among n."""
    num_candidates, counts = right_QC.shape[1], right_QC.sum(dim=1).tolist()
    found = {}
    for k in CUTS:
        num_drawn = min(k, num_candidates)
        total = comb(num_candidates, num_drawn)
        miss = {count: comb(num_candidates - count, num_drawn) / total for count in set(counts)}
        found[f"r{k}"] = 100.0 * sum(1.0 - miss[count] for count in counts) / len(counts)
    return found


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


def recall_standard_error(recall: float, num_queries: int) -> float:
    """Return the binomial standard error of a recall in percent, in points: what drawing other queries would change."""
    share = recall / 100.0
    return 100.0 * sqrt(share * (1.0 - share) / num_queries)


def clustered_standard_error(values: Tensor, cluster: Tensor) -> float:
    """Return the standard error, in points, of the mean of `values` (hits, 0 or 1) that hang together in clusters.

    Languages share their images: an image that is hard in one is hard in all, so a mean over languages is less
    sure than its number of queries suggests. `cluster`: int64, same shape as `values`, one number per image.
    """
    numbers, index = torch.unique(cluster, return_inverse=True)
    num_clusters = len(numbers)
    if num_clusters < 2:
        return 0.0
    residual = values.double() - values.double().mean()
    sums = torch.zeros(num_clusters, dtype=torch.float64).index_add_(0, index.cpu(), residual.cpu())
    variance = float((sums**2).sum()) * num_clusters / (num_clusters - 1) / len(values) ** 2
    return 100.0 * sqrt(variance)
