"""How sure a number is: the standard error of a recall."""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor


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
