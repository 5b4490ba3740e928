"""From encoded texts and images to each view's contrastive losses and fusion rows.

| view | first side, the memory | second side, the query | masked text | memory of the masked text |
|---|---|---|---|---|
| image_text | image | caption | caption | image |
| regions | image, pooled and masked to the region | text about it | that text | the same |
| text_pair | "text 1" | "text 2" | text 1 | text 2 (TLM: both in one text, no memory) |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cclm.config import ObjectiveConfig
from cclm.data.batch import ImageTextBatch, RegionBatch, TextPairBatch
from cclm.objectives.contrastive import contrastive
from cclm.objectives.term import Term
from cclm.train.rows import BoxTargets, FusionRows, Tally, ViewRows, negatives, select


@dataclass(frozen=True, kw_only=True)
class EncodedTexts:
    """One view's texts after the text encoder."""

    states_BLD: Float[Tensor, "b l d"]
    mask_BL: Bool[Tensor, "b l"]
    feature_BE: Float[Tensor, "b e"]
    masked_states_MLD: Float[Tensor, "m l d"]
    masked_mask_ML: Bool[Tensor, "m l"]
    second_feature_BE: Float[Tensor, "b e"] | None = None
    """Of the second captions."""


@dataclass(frozen=True, kw_only=True)
class EncodedImages:
    """One view's images after the vision encoder; rows are images, or regions."""

    states_BND: Float[Tensor, "b n d"]
    mask_BN: Bool[Tensor, "b n"]
    feature_BE: Float[Tensor, "b e"]
    whole_BND: Float[Tensor, "_b n d"]
    """The images themselves, where rows are regions."""


@dataclass(frozen=True, kw_only=True)
class StepContext:
    """What every view needs in a step."""

    objectives: ObjectiveConfig
    gather: Callable[[Tensor], Tensor]
    """Rows of all ranks, with gradient."""
    temperature: Float[Tensor, " 1"]
    hardness: float
    tally: Tally

    def contrast(
        self,
        first_NE: Tensor,
        second_ME: Tensor,
        identities: tuple[Tensor, Tensor],
        temperature: Tensor | None = None,
    ) -> Term:
        """The contrastive loss with this run's options."""
        return contrastive(
            first_NE,
            second_ME,
            *identities,
            self.temperature if temperature is None else temperature,
            gather=self.gather,
            label_smoothing=self.objectives.label_smoothing,
            grad_scale=self.objectives.contrastive_grad_scale,
        )


def image_text_rows(step: StepContext, batch: ImageTextBatch, images: EncodedImages, texts: EncodedTexts) -> ViewRows:
    """Contrastive losses of images and captions; rows for matching and masked-LM.

    With two captions the image-text loss is the mean of both captions', and captions are contrasted with each other
    (spec §2.5); everything else is about the first.
    """
    same = batch.identity_B, batch.identity_B
    itc = step.contrast(images.feature_BE, texts.feature_BE, same)
    if texts.second_feature_BE is not None:
        second = step.contrast(images.feature_BE, texts.second_feature_BE, same)
        itc = Term(0.5 * (itc.sum + second.sum), itc.count)
        ttc = step.contrast(texts.feature_BE, texts.second_feature_BE, same)
        step.tally.add_loss("image_text/ttc", ttc, step.objectives.ttc_weight)
    step.tally.add_loss("image_text/itc", itc, step.objectives.itc_weight)
    return _picture_rows("image_text", step, batch, batch.identity_B, images, texts)


def region_rows(step: StepContext, batch: RegionBatch, images: EncodedImages, texts: EncodedTexts) -> ViewRows:
    """The same for regions, and boxes to locate in the whole images."""
    itc = step.contrast(images.feature_BE, texts.feature_BE, (batch.identity_R, batch.identity_R))
    step.tally.add_loss("regions/itc", itc, step.objectives.itc_weight)
    row_F = batch.matching_row_F
    boxes = BoxTargets(
        rows=select(
            (texts.states_BLD, texts.mask_BL),
            row_F,
            (images.whole_BND, torch.ones(images.whole_BND.shape[:2], dtype=torch.bool, device=row_F.device)),
            batch.image_of_R[row_F],
        ),
        box_F4=batch.box_R4[row_F],
        whole_F=batch.whole_R[row_F],
    )
    return _picture_rows("regions", step, batch, batch.identity_R, images, texts, boxes)


def _picture_rows(
    name: str,
    step: StepContext,
    batch: ImageTextBatch | RegionBatch,
    identity_B: Tensor,
    images: EncodedImages,
    texts: EncodedTexts,
    boxes: BoxTargets | None = None,
) -> ViewRows:
    """Rows of pictures (or regions) with texts."""
    row_F = batch.matching_row_F
    other_text_F, other_image_F = negatives(
        images.feature_BE,
        texts.feature_BE,
        identity_B,
        row_F,
        (batch.noise_second_FG, batch.noise_first_FG),
        step.temperature,
        step.hardness,
    )
    memories = images.states_BND, images.mask_BN
    return ViewRows(
        name=name,
        matching_name="itm",
        matched=select(
            (texts.states_BLD, texts.mask_BL),
            torch.cat([row_F, row_F, other_text_F]),
            memories,
            torch.cat([row_F, other_image_F, row_F]),
        ),
        masked=FusionRows(
            query_FLD=texts.masked_states_MLD,
            query_mask_FL=texts.masked_mask_ML,
            memory_FND=memories[0][row_F],
            memory_mask_FN=memories[1][row_F],
        ),
        slots=batch.masked,
        boxes=boxes,
    )


def text_pair_rows(step: StepContext, pairs: TextPairBatch, texts: EncodedTexts) -> ViewRows:
    """Contrastive loss of sentences and translations; rows for matching and masked-LM, or for TLM."""
    temperature = step.temperature * step.objectives.text_temperature_factor
    text_UE, states = texts.feature_BE, (texts.states_BLD, texts.mask_BL)
    pairs_per_sample = pairs.first_P.shape[0] // pairs.identity_S.shape[0]
    ttc = step.contrast(
        text_UE[pairs.first_P[::pairs_per_sample]],
        text_UE[pairs.second_P],
        (pairs.identity_S, pairs.identity_P),
        temperature,
    )
    step.tally.add_loss("text_pair/ttc", ttc, step.objectives.ttc_weight)
    row_F = pairs.matching_row_F
    matched, answers = None, None
    if not pairs.tlm:
        other_query_F, other_memory_F = negatives(
            text_UE[pairs.memory_S],
            text_UE[pairs.query_S],
            pairs.identity_S,
            row_F,
            (pairs.noise_second_FG, pairs.noise_first_FG),
            temperature,
            step.hardness,
        )
        matched = select(
            states,
            pairs.query_S[torch.cat([row_F, row_F, other_query_F])],
            states,
            pairs.memory_S[torch.cat([row_F, other_memory_F, row_F])],
        )
        answers = pairs.query_S[row_F]
    return ViewRows(
        name="text_pair",
        matching_name="ttm",
        matched=matched,
        masked=FusionRows(
            query_FLD=texts.masked_states_MLD,
            query_mask_FL=texts.masked_mask_ML,
            memory_FND=None if answers is None else texts.states_BLD[answers],
            memory_mask_FN=None if answers is None else texts.mask_BL[answers],
        ),
        slots=pairs.masked,
    )
