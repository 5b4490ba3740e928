"""Re-ranking: the dual encoder proposes k candidates, the fusion encoder looks at each pair and orders them anew.

    similarity (texts × images) ── top k of each row, top k of each column ──▶ pairs, each once
    pairs ── fuse, match_logits ──▶ log-odds of a match ── rule ──▶ new order of the k; the rest keeps its place

The published CCLM orders by the logit of "match" alone, as fine-tuning's evaluation does
(`cclm.train.retrieval_evaluation`); here two weights are a rule, chosen on a dev set, and what fixed rules would have
given is told beside it. Both directions share one pass: a pair that both want is scored once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cclm.evaluate.embed import Encoded
from cclm.evaluate.retrieval import Nearest, nearest
from cclm.model.modeling_cclm import CCLMModel

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
class Pairs(PairNumbers):
    """The pairs that both directions want."""

    images_of_texts: Nearest
    texts_of_images: Nearest

    @classmethod
    def of(cls, images_of_texts: Nearest, texts_of_images: Nearest, num_images: int) -> Pairs:
        """Return the pairs of text → image and of image → text candidates."""
        found = images_of_texts, texts_of_images
        number_P = torch.unique(torch.cat([number_QK.flatten() for number_QK in _numbers(*found, num_images)]))
        return cls(number_P=number_P, images_of_texts=found[0], texts_of_images=found[1], num_images=num_images)

    def scores(self, score_P: Float[Tensor, " p"]) -> tuple[Float[Tensor, "t k"], Float[Tensor, "c k"]]:
        """Return the scores of the pairs as text → image and image → text candidates have them."""
        wanted = _numbers(self.images_of_texts, self.texts_of_images, self.num_images)
        forward, backward = (score_P[torch.searchsorted(self.number_P, number_QK)] for number_QK in wanted)
        return forward, backward


def _numbers(images_of_texts: Nearest, texts_of_images: Nearest, num_images: int) -> Iterator[Int[Tensor, "q k"]]:
    image_TK, text_CK = images_of_texts.candidate_QK, texts_of_images.candidate_QK
    yield torch.arange(len(image_TK), device=image_TK.device)[:, None] * num_images + image_TK
    yield text_CK * num_images + torch.arange(len(text_CK), device=text_CK.device)[:, None]


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
    images_of_texts = nearest(texts.feature_NE, images.feature_NE, text_identity_T, image_identity_C, top_k)
    texts_of_images = nearest(images.feature_NE, texts.feature_NE, image_identity_C, text_identity_T, top_k)
    pairs = Pairs.of(images_of_texts, texts_of_images, len(images.feature_NE))
    log_odds_P = match_log_odds(model, images, texts, pairs.images, pairs.texts, batch_size=batch_size)
    temperature = float(model.temperature())
    forward, backward = (
        Candidates(found=found, log_odds_QK=log_odds_QK, temperature=temperature)
        for found, log_odds_QK in zip((images_of_texts, texts_of_images), pairs.scores(log_odds_P), strict=True)
    )
    return forward, backward
