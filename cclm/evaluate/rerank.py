"""Re-ranking: the dual encoder proposes k candidates, the fusion encoder looks at each pair and orders them anew.

    similarity (texts × images) ── top k of each row, top k of each column ──▶ pairs, each once
    pairs ── fuse, match_logits ──▶ log-odds of a match ── rule ──▶ new order of the k; the rest keeps its place

The published CCLM orders by the matching score alone; here two weights are a rule, chosen on a dev set, and what fixed
rules would have given is told beside it.
Both directions share one pass: a pair that both want is scored once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cclm.evaluate.embed import Encoded
from cclm.evaluate.retrieval import ranks, same_identity, top_candidates
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
"""Told beside the rule that a dev set chose, and chosen by nothing; the second is the published one."""


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """For each of Q queries, k candidates with what both encoders say about them."""

    candidate_QK: Int[Tensor, "q k"]
    """Candidate indices, best cosine first."""
    similarity_QK: Float[Tensor, "q k"]
    """Cosines."""
    log_odds_QK: Float[Tensor, "q k"]
    """Log-odds of a match."""
    right_QK: Bool[Tensor, "q k"]
    """Which candidates are right."""
    dual_rank_Q: Int[Tensor, " q"]
    """Rank by cosine alone, among the whole gallery."""
    temperature: float
    """The model's temperature."""

    def select(self, keep_Q: Bool[Tensor, " q"]) -> Candidates:
        """Return the candidates of some queries only."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        kept: dict[str, Any] = {name: value[keep_Q] for name, value in tensors.items()}
        return replace(self, **kept)

    def ranks(self, rule: RerankRule) -> Int[Tensor, " q"]:
        """Return the ranks after re-ordering by `rule`; a query with no right candidate among its k keeps its rank."""
        cosine_QK = self.similarity_QK / self.temperature
        score_QK = rule.match_weight * self.log_odds_QK + rule.similarity_weight * cosine_QK
        rank_Q = ranks(score_QK, self.right_QK, tolerance=SCORE_TOLERANCE)
        return torch.where(self.right_QK.any(dim=1), rank_Q, self.dual_rank_Q)


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
    similarity_TC = texts.feature_NE @ images.feature_NE.T
    right_TC = same_identity(text_identity_T, image_identity_C)
    image_TK = top_candidates(similarity_TC, right_TC, top_k)
    text_CK = top_candidates(similarity_TC.T, right_TC.T, top_k)
    num_images = similarity_TC.shape[1]
    row_T = torch.arange(len(similarity_TC), device=similarity_TC.device)[:, None]
    column_C = torch.arange(num_images, device=similarity_TC.device)[:, None]
    forward_TK, backward_CK = row_T * num_images + image_TK, text_CK * num_images + column_C
    pair_P = torch.unique(torch.cat([forward_TK.flatten(), backward_CK.flatten()]))
    log_odds_P = match_log_odds(model, images, texts, pair_P % num_images, pair_P // num_images, batch_size=batch_size)
    temperature = float(model.temperature())

    def gathered(candidate_QK: Tensor, pair_QK: Tensor, similarity_QC: Tensor, right_QC: Tensor) -> Candidates:
        return Candidates(
            candidate_QK=candidate_QK,
            similarity_QK=similarity_QC.gather(1, candidate_QK),
            log_odds_QK=log_odds_P[torch.searchsorted(pair_P, pair_QK.contiguous())],
            right_QK=right_QC.gather(1, candidate_QK),
            dual_rank_Q=ranks(similarity_QC, right_QC),
            temperature=temperature,
        )

    return (
        gathered(image_TK, forward_TK, similarity_TC, right_TC),
        gathered(text_CK, backward_CK, similarity_TC.T, right_TC.T),
    )
