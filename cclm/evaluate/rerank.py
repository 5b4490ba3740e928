"""Re-ranking: the dual encoder proposes k candidates, the fusion encoder looks at each pair and orders them anew.

    own queries' candidates, both directions ─ images in parts ─ exchange ─▶ pairs of a part, each once
    pairs ── fuse, match_logits ──▶ scores ─▶ each owner's candidates ─▶ new order of the k; the rest keeps its place

The published CCLM orders by the logit of "match" alone, as fine-tuning's evaluation does
(`cclm.train.retrieval_evaluation`); here two weights are a rule, chosen on a dev set, and what fixed rules would have
given is told beside it. Both directions share one pass: a pair that both want is scored once.

Very many queries are shared out to ranks: each keeps what its own find, and nobody all pairs. What stands in a part
follows from the candidates, not from how many ranks there are, so that every score is the same on any number of them.
One part, as everything of an ordinary benchmark is, is the pairs of both directions as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cclm.evaluate.embed import Encoded
from cclm.evaluate.retrieval import Nearest, nearest
from cclm.model.modeling_cclm import CCLMModel

Value = TypeVar("Value")
PAIRS_AT_ONCE = 1 << 22
"""Pairs of a part, about: some 100 bytes each while they are put together, 400 MB."""
SCORE_TOLERANCE = 1e-4
"""Re-ranked scores (tens in size) closer than this are ties; fp32 rounding of one pair in two batches is ~1e-5."""


@dataclass(frozen=True, kw_only=True)
class RerankRule:
    """score = match_weight · log-odds of a match + similarity_weight · cosine / temperature."""

    match_weight: float = 1.0
    """Weight of the matching head's log-odds."""
    similarity_weight: float = 1.0
    """Weight of the dual encoder's cosine over the temperature."""


RULE_GRID: tuple[RerankRule, ...] = (
    *(RerankRule(match_weight=weight) for weight in (0.0, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.0)),
    RerankRule(similarity_weight=0.0),
)
"""What is tried on the dev set: only the ratio of the weights matters; the first is the dual encoder alone."""

FIXED_RULES: Mapping[str, RerankRule] = {
    "match_plus_similarity": RerankRule(),
    "match_alone": RerankRule(similarity_weight=0.0),
}
"""Told beside the rule that a dev set chose, and chosen by nothing; the second is nearest to the published order."""


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """For each of Q queries, k candidates with what both encoders say about them."""

    found: Nearest
    """By cosine."""
    log_odds_QK: Float[Tensor, "q k"]
    """Log-odds of a match."""
    temperature: float
    """The model's temperature."""

    def select(self, keep_Q: Bool[Tensor, " q"]) -> Candidates:
        """Return the candidates of some queries only."""
        return replace(self, found=self.found.select(keep_Q), log_odds_QK=self.log_odds_QK[keep_Q])

    def ranks(self, rule: RerankRule) -> Int[Tensor, " q"]:
        """Return the ranks after re-ordering by `rule`; a query with no right candidate among its k keeps its rank."""
        cosine_QK = self.found.similarity_QK / self.temperature
        score_QK = rule.match_weight * self.log_odds_QK + rule.similarity_weight * cosine_QK
        return self.found.reranked(score_QK, SCORE_TOLERANCE)


@dataclass(frozen=True, kw_only=True)
class PairNumbers:
    """Pairs of a text and an image, each once, by text and then by image.

    There are many, so what follows from their numbers is computed when it is asked for.
    """

    number_P: Int[Tensor, " p"]
    """text · images + image, ascending."""
    num_images: int

    @property
    def images(self) -> Int[Tensor, " p"]:
        """Return the image of each pair."""
        return self.number_P % self.num_images

    @property
    def texts(self) -> Int[Tensor, " p"]:
        """Return the text of each pair."""
        return self.number_P.div(self.num_images, rounding_mode="floor")


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
    exchange: Callable[[Tensor], list[Tensor]] = alone,
) -> Reranked:
    """Rank the own queries anew by the scores of their candidates (`score_owned`)."""
    score_of_text_QK, score_of_image_QK, num_pairs = score_owned(texts, images, num_images, score, exchange)
    return Reranked(
        text_rank_Q=texts.found.reranked(score_of_text_QK, SCORE_TOLERANCE),
        image_rank_Q=images.found.reranked(score_of_image_QK, SCORE_TOLERANCE),
        num_pairs=num_pairs,
    )


def score_owned(
    texts: Own,
    images: Own,
    num_images: int,
    score: Callable[[PairNumbers], Float[Tensor, " p"]],
    exchange: Callable[[Tensor], list[Tensor]] = alone,
) -> tuple[Float[Tensor, "q k"], Float[Tensor, "q k"], int]:
    """Score the pairs of all ranks' candidates, part by part.

    Args:
        texts: own texts, whose candidates are images; on the CPU.
        images: own images, whose candidates are texts.
        num_images: of all ranks.
        score: returns the scores of pairs, the same on every rank.
        exchange: returns every rank's tensor. A collective, as `score` may be.

    Returns:
        Scores of the own texts' candidates, of the own images', and the pairs that were scored on all ranks together.
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
    return score_of_text_QK, score_of_image_QK, num_pairs


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


@torch.inference_mode()
def match_log_odds(
    model: CCLMModel,
    images: Encoded,
    texts: Encoded,
    image_P: Int[Tensor, " p"],
    text_P: Int[Tensor, " p"],
    *,
    batch_size: int = 256,
) -> Float[Tensor, " p"]:
    """Return the log-odds that image `image_P[i]` and text `text_P[i]` match, for P pairs.

    Pairs go through the fusion encoder sorted by text length, so that a batch holds little padding.
    """
    length_T = texts.mask_NL.sum(dim=1)
    is_whole = bool(images.mask_NL.all())  # then attention needs no mask, which is faster
    order_P = length_T[text_P].argsort(stable=True)
    log_odds_P = torch.empty(len(text_P), dtype=torch.float32, device=texts.state_NLD.device)
    for chosen_B in torch.split(order_P, batch_size):
        row_B, column_B = text_P[chosen_B], image_P[chosen_B]
        length = int(length_T[row_B].max())
        mask_BL = texts.mask_NL[row_B, :length]
        memory_BND, memory_mask_BN = images.state_NLD[column_B], None if is_whole else images.mask_NL[column_B]
        fused_BLD = model.fuse(texts.state_NLD[row_B, :length], mask_BL, memory_BND, memory_mask_BN)
        logits_B2 = model.match_logits(fused_BLD, mask_BL).float()
        log_odds_P[chosen_B] = logits_B2[:, 1] - logits_B2[:, 0]
    return log_odds_P


@torch.inference_mode()
def rerank(
    model: CCLMModel,
    images: Encoded,
    texts: Encoded,
    image_identity_C: Int[Tensor, " c"],
    text_identity_T: Int[Tensor, " t"],
    *,
    top_k: int,
    batch_size: int = 256,
) -> tuple[Candidates, Candidates]:
    """Score the `top_k` candidates of every text and of every image with the fusion encoder.

    Returns text→image and image→text candidates; apply a `RerankRule` with `.ranks(rule)`.
    """
    device, cpu = texts.feature_NE.device, torch.device("cpu")
    images_of_texts = nearest(texts.feature_NE, images.feature_NE, text_identity_T, image_identity_C, top_k)
    texts_of_images = nearest(images.feature_NE, texts.feature_NE, image_identity_C, text_identity_T, top_k)
    found = images_of_texts, texts_of_images
    asked, showing = (Own(number_Q=torch.arange(len(one.rank_Q)), found=one.to(cpu)) for one in found)

    def score(pairs: PairNumbers) -> Tensor:
        image_P, text_P = pairs.images.to(device), pairs.texts.to(device)
        return match_log_odds(model, images, texts, image_P, text_P, batch_size=batch_size).cpu()

    scores = score_owned(asked, showing, len(images.feature_NE), score)[:2]
    temperature = float(model.temperature())
    forward, backward = (
        Candidates(found=one, log_odds_QK=log_odds_QK.to(device), temperature=temperature)
        for one, log_odds_QK in zip(found, scores, strict=True)
    )
    return forward, backward
