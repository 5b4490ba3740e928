"""How sure a number is: the standard error of a recall, and mean and spread over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean, stdev

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Values of one quantity over seeds."""

    mean: float
    standard_deviation: float
    """Over seeds, with n − 1; 0 for one seed."""
    lowest: float
    highest: float
    num_seeds: int

    def __str__(self) -> str:
        return f"{self.mean:.1f} ± {self.standard_deviation:.1f} ({self.num_seeds} seeds)"


def spread(values: Sequence[float]) -> Spread:
    """Return mean and spread of one quantity over seeds."""
    deviation = stdev(values) if len(values) > 1 else 0.0
    return Spread(
        mean=fmean(values),
        standard_deviation=deviation,
        lowest=min(values),
        highest=max(values),
        num_seeds=len(values),
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
