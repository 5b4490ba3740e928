"""Hard negatives from groups that are too large for a matrix of similarities, or for noise of each pair.

A row's negative is drawn with probability ∝ softmax(hardness · similarity)_j + 1e-5 over its group, 0 where candidate j
shows the same (Cross-View Language Modeling §3), by the inverse of the distribution function: the draw is the first
candidate at which the running sum of weights passes u times their total, u uniform in [0, 1).

Two walks over blocks of candidates: the first keeps the sums of each block, from which it is known in which block a
row's draw lies; the second computes the weights again and finds it there. So memory grows with rows times a block's
columns, one number a row is all the randomness, and nothing has to be known on the host.

`draw_in_blocks_reference` is the slow twin: the whole matrix, one running sum.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

WEIGHT_FLOOR = 1e-5
"""Added to every softmax weight, as published: no candidate is out of reach."""
COLUMNS_PER_BLOCK = 1024


@torch.no_grad()
def draw_in_blocks(
    rows_FE: Float[Tensor, "f e"],
    others_NE: Float[Tensor, "n e"],
    identity_F: Int[Tensor, " f"],
    identity_N: Int[Tensor, " n"],
    group_F: Int[Tensor, " f"],
    group_N: Int[Tensor, " n"],
    uniform_F: Float[Tensor, " f"],
    scale: Float[Tensor, ""] | float,
) -> Int[Tensor, " f"]:
    """Draw one negative for each row among the others of its group, and return its place among them.

    Args:
        rows_FE, others_NE: features; a similarity is `scale` times their product.
        identity_F, identity_N: what each shows. A row without a candidate that shows another thing gets any place.
        group_F, group_N: of each; candidates are those of the row's own group.
        uniform_F: random numbers in [0, 1), float64.
        scale: hardness over temperature.
    """
    given = rows_FE, others_NE, identity_F, identity_N, group_F, group_N, scale
    sums = zip(*(_sums(*block) for block in _blocks(*given)), strict=True)
    all_FK, others_FK, count_FK = (torch.stack(of_blocks, 1) for of_blocks in sums)
    log_sum_F1 = all_FK.logsumexp(1, keepdim=True)
    ends_FK = ((others_FK - log_sum_F1).exp() + WEIGHT_FLOOR * count_FK).cumsum(1)
    target_F1 = _below(uniform_F[:, None] * ends_FK[:, -1:], ends_FK[:, -1:])
    block_F1 = torch.searchsorted(ends_FK, target_F1, right=True).clamp_max(ends_FK.shape[1] - 1)
    rest_F1 = target_F1 - torch.where(block_F1 > 0, ends_FK.gather(1, (block_F1 - 1).clamp_min(0)), 0.0)
    found_F1 = torch.zeros_like(block_F1)
    for number, (similarity_FB, is_candidate_FB) in enumerate(_blocks(*given)):
        end_FB = _weights(similarity_FB, log_sum_F1, is_candidate_FB).cumsum(1)
        place_F1 = torch.searchsorted(end_FB, _below(rest_F1, end_FB[:, -1:]), right=True)
        place_F1 = place_F1.clamp_max(end_FB.shape[1] - 1) + number * COLUMNS_PER_BLOCK
        found_F1 = torch.where(block_F1 == number, place_F1, found_F1)
    return found_F1[:, 0]


@torch.no_grad()
def draw_in_blocks_reference(
    rows_FE: Float[Tensor, "f e"],
    others_NE: Float[Tensor, "n e"],
    identity_F: Int[Tensor, " f"],
    identity_N: Int[Tensor, " n"],
    group_F: Int[Tensor, " f"],
    group_N: Int[Tensor, " n"],
    uniform_F: Float[Tensor, " f"],
    scale: Float[Tensor, ""] | float,
) -> Int[Tensor, " f"]:
    """The slow twin of `draw_in_blocks`: all weights at once."""
    is_own_FN = group_F[:, None] == group_N
    similarity_FN = (scale * (rows_FE @ others_NE.T)).double().masked_fill(~is_own_FN, -torch.inf)
    weight_FN = (similarity_FN.softmax(1) + WEIGHT_FLOOR) * (is_own_FN & (identity_F[:, None] != identity_N))
    end_FN = weight_FN.cumsum(1)
    return (end_FN <= uniform_F[:, None] * end_FN[:, -1:]).sum(1).clamp_max(others_NE.shape[0] - 1)


def _blocks(
    rows_FE: Tensor,
    others_NE: Tensor,
    identity_F: Tensor,
    identity_N: Tensor,
    group_F: Tensor,
    group_N: Tensor,
    scale: Tensor | float,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield similarities (minus infinity outside of the group), and whether each is a candidate's, block by block."""
    scaled_FE = rows_FE * scale
    for start in range(0, others_NE.shape[0], COLUMNS_PER_BLOCK):
        block = slice(start, start + COLUMNS_PER_BLOCK)
        is_own_FB = group_F[:, None] == group_N[block]
        similarity_FB = (scaled_FE @ others_NE[block].T).double().masked_fill_(~is_own_FB, -torch.inf)
        yield similarity_FB, is_own_FB & (identity_F[:, None] != identity_N[block])


def _sums(similarity_FB: Tensor, is_candidate_FB: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log-sum-exps of a block, of all of a row's group and of its candidates; and how many these are."""
    others_F = similarity_FB.masked_fill(~is_candidate_FB, -torch.inf).logsumexp(1)
    return similarity_FB.logsumexp(1), others_F, is_candidate_FB.sum(1)


def _weights(similarity_FB: Tensor, log_sum_F1: Tensor, is_candidate_FB: Tensor) -> Tensor:
    return similarity_FB.sub_(log_sum_F1).exp_().add_(WEIGHT_FLOOR).mul_(is_candidate_FB)


def _below(value: Tensor, limit: Tensor) -> Tensor:
    """The value, below the limit whatever sums were rounded: where a running sum passes it, a weight is not zero."""
    return torch.minimum(value, torch.nextafter(limit, torch.zeros_like(limit)))
