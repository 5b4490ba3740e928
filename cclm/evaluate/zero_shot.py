"""Zero-shot retrieval in many languages on one gallery of images: everything that a table needs.

images (once) ─┐
texts, one language at a time ─┴─▶ dual ranks ─▶ re-ranked candidates ─▶ hits by language and direction
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cclm.evaluate.embed import Encoded, encode_images, encode_texts
from cclm.evaluate.matching import MatchingScore, held_out_matching
from cclm.evaluate.rerank import RULE_GRID, Candidates, RerankRule, rerank
from cclm.evaluate.retrieval import Recall, chance, mean_recall, nearest, num_right, recall
from cclm.evaluate.scores import DIRECTIONS
from cclm.model.modeling_cclm import CCLMModel

NUM_SHOWN = 5
"""Images that are kept of each text, to look at."""


@dataclass(frozen=True, kw_only=True)
class LanguageQueries:
    """The texts of one language."""

    ids_TL: Int[Tensor, "t l"]
    """Padded token ids."""
    mask_TL: Bool[Tensor, "t l"]
    """True where a real token stands."""
    image_T: Int[Tensor, " t"]
    """Index of each text's image."""


@dataclass(frozen=True, kw_only=True)
class RetrievalSet:
    """A gallery and its texts by language."""

    images_CCHW: Float[Tensor, "c 3 h w"]
    """Normalised images."""
    identity_C: Int[Tensor, " c"]
    """Equal numbers show the same thing."""
    queries: Mapping[str, LanguageQueries]
    """Texts by language."""


@dataclass(frozen=True, kw_only=True)
class LanguageResult:
    """What was measured in one language; keys are the directions "t2i" and "i2t"."""

    rank_by_direction: Mapping[str, Tensor]
    """Rank of each query by the dual encoder, from 0."""
    image_by_direction: Mapping[str, Tensor]
    """The image that each query is about: what hangs together across languages."""
    chance_by_direction: Mapping[str, Recall]
    """Recall of a random order."""
    candidates_by_direction: Mapping[str, Candidates]
    """What the fusion encoder saw; empty without re-ranking."""
    best_TK: Int[Tensor, "t k"]
    """The images of the five highest cosines for each text (for a gallery to look at)."""

    def recall(self, direction: str, rule: RerankRule | None = None) -> Recall:
        """Return the recall of the dual encoder, or re-ranked by `rule`."""
        return recall(self.ranks(direction, rule))

    def ranks(self, direction: str, rule: RerankRule | None = None) -> Tensor:
        """Return the ranks of the dual encoder, or re-ranked by `rule`."""
        return (
            self.rank_by_direction[direction] if rule is None else self.candidates_by_direction[direction].ranks(rule)
        )


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """All languages of one set."""

    languages: Mapping[str, LanguageResult]
    matching: Mapping[str, Mapping[str, MatchingScore]]
    """By language: the matching head on "random" and on "hard" wrong pairs."""
    top_k: int
    """Candidates that were re-ranked; 0 without re-ranking."""

    def group_recall(self, group: Sequence[str], direction: str, rule: RerankRule | None = None) -> Recall:
        """Return the mean over the languages of a group."""
        return mean_recall([self.languages[language].recall(direction, rule) for language in group])


@torch.inference_mode()
def measure(
    model: CCLMModel,
    data: RetrievalSet,
    *,
    top_k: int = 0,
    matching_languages: Sequence[str] = (),
    batch_size: int = 256,
    on_language: Callable[[str], None] = lambda language: None,
) -> Measurement:
    """Measure `model` on every language of `data`; `top_k` > 0 also re-ranks.

    The model must be in evaluation mode. `on_language` is told each language when it is done (a progress bar).
    """
    images = encode_images(model, data.images_CCHW, batch_size=batch_size)
    languages: dict[str, LanguageResult] = {}
    matching: dict[str, dict[str, MatchingScore]] = {}
    for language, queries in data.queries.items():
        texts = encode_texts(model, queries.ids_TL, queries.mask_TL, batch_size=batch_size)
        languages[language] = _measure_language(
            model, images, texts, data.identity_C, queries.image_T, top_k, batch_size
        )
        if language in matching_languages:
            matching[language] = held_out_matching(
                model, images, texts, data.identity_C, queries.image_T, batch_size=batch_size
            )
        on_language(language)
    return Measurement(languages=languages, matching=matching, top_k=top_k)


def _measure_language(
    model: CCLMModel,
    images: Encoded,
    texts: Encoded,
    identity_C: Tensor,
    image_T: Tensor,
    top_k: int,
    batch_size: int,
) -> LanguageResult:
    identity_T = identity_C[image_T]
    asked_C = torch.isin(identity_C, identity_T)  # images without a text in this language ask nothing
    features, identities = (texts.feature_NE, images.feature_NE), (identity_T, identity_C)
    candidates: dict[str, Candidates] = {}
    if top_k:
        forward, backward = rerank(model, images, texts, identity_C, identity_T, top_k=top_k, batch_size=batch_size)
        candidates = {"t2i": forward, "i2t": backward.select(asked_C)}
    images_of_texts = nearest(*features, *identities, NUM_SHOWN)
    texts_of_images = nearest(*features[::-1], *identities[::-1])
    return LanguageResult(
        rank_by_direction={"t2i": images_of_texts.rank_Q, "i2t": texts_of_images.rank_Q[asked_C]},
        image_by_direction={"t2i": image_T, "i2t": asked_C.nonzero()[:, 0]},
        chance_by_direction={
            "t2i": chance(num_right(identity_T, identity_C), len(identity_C)),
            "i2t": chance(num_right(identity_C[asked_C], identity_T), len(identity_T)),
        },
        candidates_by_direction=candidates,
        best_TK=images_of_texts.candidate_QK,
    )


def choose_rerank_rule(
    dev: Measurement, groups: Sequence[Sequence[str]]
) -> tuple[RerankRule, list[tuple[RerankRule, float]]]:
    """Choose the rule on a dev set: the highest sum over `groups` of mean R@1, both directions together.

    Returns:
        The rule (the earlier one of `RULE_GRID` on a tie), and every rule's value.
    """
    values = [
        (rule, sum(dev.group_recall(group, way, rule)["r1"] / 2 for group in groups for way in DIRECTIONS))
        for rule in RULE_GRID
    ]
    return max(values, key=lambda pair: pair[1])[0], values
