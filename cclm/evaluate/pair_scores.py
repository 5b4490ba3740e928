"""Scores of very many pairs by the fusion encoder, in memory that does not grow with them.

    pairs, by image ─▶ block of images, their states ─▶ batches of pairs: a few texts, as many pairs
                                                           states of the texts ─ fuse ─▶ scores

The states of very many images do not fit into memory, those of one block do. Where states do not stay, a text is
encoded again for each block in which a pair has it: one encoding for many pairs. What is in a batch depends on the
pairs only, not on how many ranks share the work: so every score is the same on any number of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cclm.evaluate.rerank import PairNumbers
from cclm.model.modeling_cclm import CCLMModel

Each = Callable[[Sequence["PairBatch"], Callable[["PairBatch"], Tensor]], Sequence[Tensor]]
"""A `map` that ranks may share."""
IMAGES_AT_ONCE = 512
"""Images whose states are in memory: 320 MB at 384 pixels (145 patches of 1,024 floats), 1.2 GB with 577 patches."""
PAIRS_PER_TEXT = 8
"""Pairs that are fused together for each text of a batch, on average, at most."""


@dataclass(frozen=True, kw_only=True)
class PairBatch:
    """B pairs that are fused together."""

    place_B: Int[Tensor, " b"]
    """Their places among all pairs."""
    text_U: Int[Tensor, " u"]
    """The texts that they have, each once."""
    text_B: Int[Tensor, " b"]
    """Which of `text_U` each pair has."""
    image_V: Int[Tensor, " v"]
    """The images that they have, as places in the block."""
    image_B: Int[Tensor, " b"]
    """Which of `image_V` each pair has."""


def one_by_one(given: Sequence[PairBatch], compute: Callable[[PairBatch], Tensor]) -> list[Tensor]:
    """Compute all in this process."""
    return [compute(one) for one in given]


def score_pairs(
    pairs: PairNumbers,
    length_T: Int[Tensor, " t"],
    states: Callable[[Int[Tensor, " i"]], Float[Tensor, "i n d"]],
    score: Callable[[Float[Tensor, "i n d"], PairBatch], Float[Tensor, " b"]],
    *,
    batch_size: int,
    device: torch.device,
    each: Each = one_by_one,
) -> Float[Tensor, " p"]:
    """Return the score of every pair, on the CPU.

    Args:
        pairs: on the CPU.
        length_T: lengths of all texts: those of one batch are similar.
        states: returns those of a block's images, of `IMAGES_AT_ONCE` at most.
        score: returns the scores of a batch, given the states of its block's images on `device`.
        batch_size: texts of a batch.
        device: of the model.
        each: how several batches are computed; a collective where `score` is.
    """
    score_P = torch.empty(len(pairs.number_P))
    image_P, text_P = pairs.images, pairs.texts
    order_P = image_P.argsort(stable=True)
    image_A, count_A = torch.unique_consecutive(image_P[order_P], return_counts=True)
    position_T = length_T.argsort(stable=True).argsort()
    blocks = zip(torch.split(image_A, IMAGES_AT_ONCE), torch.split(count_A, IMAGES_AT_ONCE), strict=True)
    first = 0
    for image_I, count_I in blocks:
        state_IND = states(image_I).to(device)
        place_P = order_P[first : first + int(count_I.sum())]
        first += len(place_P)
        column_P = torch.searchsorted(image_I, image_P[place_P])
        batches = list(_batches(place_P, column_P, text_P[place_P], position_T, batch_size))
        for batch, scores_B in zip(batches, each(batches, partial(score, state_IND)), strict=True):
            score_P[batch.place_B] = scores_B
    return score_P


def _batches(
    place_P: Tensor, column_P: Tensor, text_P: Tensor, position_T: Tensor, texts_at_once: int
) -> Iterator[PairBatch]:
    """Yield the pairs of a block: texts of similar length together, and their pairs by image, which share its keys."""
    part_P = torch.unique(position_T[text_P], return_inverse=True)[1] // texts_at_once
    order_P = (part_P * (int(column_P.max()) + 1) + column_P).argsort(stable=True)
    counts = torch.bincount(part_P).tolist()
    for of_texts in torch.split(order_P, counts):
        for chosen_B in torch.split(of_texts, PAIRS_PER_TEXT * texts_at_once):
            text_U, text_B = torch.unique(text_P[chosen_B], return_inverse=True)
            image_V, image_B = torch.unique(column_P[chosen_B], return_inverse=True)
            yield PairBatch(place_B=place_P[chosen_B], text_U=text_U, text_B=text_B, image_V=image_V, image_B=image_B)


def match_scores(
    model: CCLMModel, image_IND: Tensor, batch: PairBatch, state_ULD: Tensor, mask_UL: Tensor, *, log_odds: bool = False
) -> Float[Tensor, " b"]:
    """Return the matching head's logit of "match", by which the published CCLM orders candidates, of a batch of pairs;
    or the log-odds of a match, by which `cclm evaluate` does.

    `image_IND`: states of the block's images. `state_ULD`, `mask_UL`: those of the batch's texts.
    """
    device = image_IND.device
    row_B, reads_B = batch.text_B.to(device), batch.image_B.to(device)
    memory_VND = image_IND[batch.image_V.to(device)]
    fused_BLD = model.fuse(state_ULD[row_B], mask_UL[row_B], memory_VND, memory_of_B=reads_B)
    logits_B2 = model.match_logits(fused_BLD, mask_UL[row_B]).float()
    return logits_B2[:, 1] - logits_B2[:, 0] if log_odds else logits_B2[:, 1]
