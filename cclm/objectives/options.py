"""Weights and options of the losses. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """Weights and options of the losses (spec: CCLM section 3; the defaults are the published values)."""

    itc_weight: float = 1.0
    """Image-text contrastive loss."""
    itm_weight: float = 1.0
    """Image-text matching loss."""
    ttc_weight: float = 1.0
    """Text-text contrastive loss."""
    ttm_weight: float = 1.0
    """Text-text matching loss."""
    mlm_weight: float = 1.0
    """Conditional masked-language-modelling loss, both views."""
    box_weight: float = 1.0
    """L1 distance of boxes (regions)."""
    giou_weight: float = 1.0
    """1 - GIoU of boxes (regions)."""
    means: Literal["global", "per_rank"] = "global"
    """What a loss is a mean over. "global": the samples (or masked tokens, or boxes) of the global batch, so that the
    number of ranks changes nothing; "per_rank": those of each rank, then averaged over the ranks, as published."""
    text_temperature_factor: float = 1.0
    """The text view divides its similarities by temperature x this. The temperature itself is shared by the views;
    above 1, TTC keeps pulling translations together after they already rank first (docs/log.md)."""
    label_smoothing: float = 0.0
    """Share of the contrastive target spread evenly over all candidates."""
    contrastive_grad_scale: float = 1.0
    """Factor on the gradient of the contrastive losses into the features; 1/8 reproduces the published 8-GPU runs."""
    hardness: float = 1.0
    """Hard negatives are drawn with weights softmax(hardness x similarity / temperature): 1 as published, 0 uniform."""
    hardness_start_step: int = 0
    """With a ramp: draws are uniform up to this step. A matching head learns nothing from hard negatives of untrained
    encoders (docs/log.md)."""
    hardness_full_step: int = 0
    """With a ramp: the hardness rises linearly from `hardness_start_step` and reaches its value here; 0: no ramp."""
    fusion_warmup_steps: int = 0
    """Steps in which the fusion losses train only the fusion encoder and the heads; the encoders follow the
    contrastive losses alone."""
