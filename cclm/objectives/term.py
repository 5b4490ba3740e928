"""Loss terms as local sums and local counts, so that means are means over the global batch, not means of means."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Term(NamedTuple):
    """One rank's part of a mean: Σ sum over the ranks / Σ count over the ranks is the loss of the global batch."""

    sum: Tensor
    """Scalar, float32, differentiable."""
    count: Tensor  # type: ignore[assignment]  # hides tuple.count, which nobody needs here
    """Scalar, float32: how many samples (or masked tokens) stand in `sum`."""


def make_term(total: Float[Tensor, ""], count: int) -> Term:
    """A term from its sum and a count known on the host."""
    return Term(total, torch.full((), float(count), dtype=torch.float32, device=total.device))


def shares(
    terms: Mapping[str, Term],
    sum_over_ranks: Callable[[Tensor], Tensor] = lambda counts: counts,
    world_size: int = 1,
    *,
    per_rank: bool = False,
) -> dict[str, Tensor]:
    """Scale each local sum so that the mean over the ranks is the mean over the global batch.

    Args:
        terms: the same names in the same order on every rank.
        sum_over_ranks: all-reduce of the vector of counts; one collective for all terms.
        world_size: number of ranks.
        per_rank: divide by this rank's own count instead, as the published code does; the mean over the ranks is then
            a mean of means.

    Returns:
        world_size · sum / global count by name; zero where no rank has a sample.
    """
    if not terms:
        return {}
    if per_rank:
        return {name: term.sum / term.count.clamp_min(1.0) for name, term in terms.items()}
    totals = sum_over_ranks(torch.stack([term.count for term in terms.values()]).detach()).clamp_min(1.0)
    return {name: term.sum * (world_size / total) for (name, term), total in zip(terms.items(), totals, strict=True)}
