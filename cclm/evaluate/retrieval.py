"""Recall at k, ties counted against us; and how sure it is. The matrix of scores is computed in blocks.

A query's rank is the number of wrong candidates that score at least as high as its best right one. So a model that
gives every candidate the same score gets recall 0, not 100, and two captions that read the same (two images with
one name in some language) cost a point rather than giving one. Right means: same identity; there may be several.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import comb, sqrt
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cclm.evaluate.scores import RECALL_CUTS
from cclm.ops.choice import exact_products

SIMILARITY_TOLERANCE = 1e-6
"""Cosines closer than this are ties: one text reaches the matrix product in different places with other roundings."""

QUERIES_AT_ONCE = 1024
"""Rows of the matrix of similarities that are computed together."""
CANDIDATES_AT_ONCE = 4096
"""Columns of it. A block is 16 MiB, and a few copies of it are made."""


class Rows(Protocol):
    """Rows of numbers: a tensor, or what is put together of one when it is asked for."""

    def __len__(self) -> int:
        """Return how many there are."""

    def __getitem__(self, rows: Any, /) -> Tensor:
        """Return some of them."""


Recall = Mapping[str, float]
"""Recall at 1, 5 and 10, in percent: "r1", "r5", "r10"."""


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
    return {f"r{k}": 100.0 * float((rank_Q < k).double().mean()) for k in RECALL_CUTS}


def mean_recall(recalls: Sequence[Recall]) -> Recall:
    """Return the mean over languages, each counting the same."""
    return {name: sum(one[name] for one in recalls) / len(recalls) for name in recalls[0]}


def num_right(identity_Q: Int[Tensor, " q"], identity_C: Int[Tensor, " c"]) -> Int[Tensor, " q"]:
    """Return how many candidates are right for each query."""
    numbers, count = torch.unique(identity_C, return_counts=True)
    place_Q = torch.searchsorted(numbers, identity_Q).clamp(max=len(numbers) - 1)
    return torch.where(numbers[place_Q] == identity_Q, count[place_Q], 0)


def chance(num_right_Q: Int[Tensor, " q"], num_candidates: int) -> Recall:
    """Return the expected recall of a random order: 1 − C(n − p, k) / C(n, k) for p right ones among n."""
    counts = num_right_Q.tolist()
    found = {}
    for k in RECALL_CUTS:
        num_drawn = min(k, num_candidates)
        total = comb(num_candidates, num_drawn)
        miss = {count: comb(num_candidates - count, num_drawn) / total for count in set(counts)}
        found[f"r{k}"] = 100.0 * sum(1.0 - miss[count] for count in counts) / len(counts)
    return found


@dataclass(frozen=True, kw_only=True)
class Nearest:
    """What each of Q queries finds in a gallery, and the k candidates that are kept of it (all, if there are fewer)."""

    rank_Q: Int[Tensor, " q"]
    """As `ranks`, in the whole gallery."""
    candidate_QK: Int[Tensor, "q k"]
    """Indices of the best candidates, best first. Of equal ones a right one gives way to a wrong one."""
    similarity_QK: Float[Tensor, "q k"]
    right_QK: Bool[Tensor, "q k"]

    def reranked(self, score_QK: Float[Tensor, "q k"], tolerance: float) -> Int[Tensor, " q"]:
        """Return the ranks after the candidates were ordered by a score; a query with no right one among them keeps its
        rank, which is behind them."""
        rank_Q = ranks(score_QK, self.right_QK, tolerance=tolerance)
        return torch.where(self.right_QK.any(dim=1), rank_Q, self.rank_Q.clamp(min=score_QK.shape[1]))

    def select(self, keep_Q: Bool[Tensor, " q"]) -> Nearest:
        """Return what some of the queries find."""
        return Nearest(**{name: value[keep_Q] for name, value in vars(self).items()})

    def to(self, device: torch.device) -> Nearest:
        """Return the same on a device."""
        return Nearest(**{name: value.to(device) for name, value in vars(self).items()})


def joined(parts: Sequence[Nearest]) -> Nearest:
    """Return what the queries of all parts find."""
    return Nearest(**{name: torch.cat([getattr(part, name) for part in parts]) for name in vars(parts[0])})


def nearest(
    query_QE: Float[Tensor, "q e"],
    candidate_CE: Float[Tensor, "c e"],
    identity_Q: Int[Tensor, " q"],
    identity_C: Int[Tensor, " c"],
    num_kept: int = 0,
) -> Nearest:
    """Return where each query's best right candidate stands, and its `num_kept` best candidates. Exact.

    Of the matrix of similarities there is one block at a time, on the device of the queries; candidates and identities
    may lie elsewhere. A rank needs the score of the best right candidate first, so every block is computed twice.
    """
    parts = zip(torch.split(query_QE, QUERIES_AT_ONCE), torch.split(identity_Q, QUERIES_AT_ONCE), strict=True)
    return joined([nearest_of_block(rows_BE, candidate_CE, of_B, identity_C, num_kept) for rows_BE, of_B in parts])


@exact_products()  # the error of TF32, 1e-3, is a thousand times the tolerance of ties
def nearest_of_block(
    query_QE: Tensor, candidate_CE: Rows, identity_Q: Tensor, identity_C: Tensor, num_kept: int
) -> Nearest:
    """As `nearest`, of queries that go through together."""
    device, num_candidates = query_QE.device, len(candidate_CE)
    num_kept, identity_Q = min(num_kept, num_candidates), identity_Q.to(device)

    def blocks() -> Iterator[tuple[int, Tensor, Tensor]]:
        for first in range(0, num_candidates, CANDIDATES_AT_ONCE):
            rows = slice(first, first + CANDIDATES_AT_ONCE)
            score_QB = query_QE @ candidate_CE[rows].to(device).T
            yield first, score_QB, same_identity(identity_Q, identity_C[rows].to(device))

    best_Q = query_QE.new_full((len(query_QE),), -torch.inf)
    similarity_QK, order_QK, candidate_QK = query_QE[:, :0], query_QE[:, :0], identity_Q[:, None][:, :0]
    for first, score_QB, right_QB in blocks():
        best_Q = torch.maximum(best_Q, score_QB.masked_fill(~right_QB, -torch.inf).amax(dim=1))
        # Right ones are moved back by more than the tolerance: among equals they give way.
        order_QB = score_QB - 2 * SIMILARITY_TOLERANCE * right_QB
        top = order_QB.topk(min(num_kept, order_QB.shape[1]), dim=1)
        order_QM = torch.cat([order_QK, top.values], dim=1)
        order_QK, place_QK = order_QM.topk(min(num_kept, order_QM.shape[1]), dim=1)
        candidate_QK = torch.cat([candidate_QK, top.indices + first], dim=1).gather(1, place_QK)
        similarity_QK = torch.cat([similarity_QK, score_QB.gather(1, top.indices)], dim=1).gather(1, place_QK)
    rank_Q = torch.zeros(len(query_QE), dtype=torch.int64, device=device)
    for _, score_QB, right_QB in blocks():
        rank_Q += ((score_QB >= best_Q[:, None] - SIMILARITY_TOLERANCE) & ~right_QB).sum(dim=1)
    return Nearest(
        rank_Q=torch.where(best_Q > -torch.inf, rank_Q, num_candidates),
        candidate_QK=candidate_QK,
        similarity_QK=similarity_QK,
        right_QK=identity_Q[:, None] == identity_C.to(device)[candidate_QK],
    )


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
