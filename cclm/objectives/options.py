"""Weights and options of the losses. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from cclm.types import Bounds, Count, NotNegative, Positive, Share


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """Weights and options of the losses (spec: CCLM section 3; the defaults are the published values)."""

    itc_weight: NotNegative = 1.0
    """Image-text contrastive loss."""
    itm_weight: NotNegative = 1.0
    """Image-text matching loss."""
    ttc_weight: NotNegative = 1.0
    """Text-text contrastive loss."""
    ttm_weight: NotNegative = 1.0
    """Text-text matching loss."""
    mlm_weight: NotNegative = 1.0
    """Conditional masked-language-modelling loss, both views."""
    box_weight: NotNegative = 1.0
    """L1 distance of boxes."""
    giou_weight: NotNegative = 1.0
    """1 - GIoU of boxes."""
    means: Literal["global", "per_rank"] = "global"
    """What a loss is a mean over. "global": the samples (or masked tokens, or boxes) of the global batch, so that the
    number of ranks changes nothing; "per_rank": those of each rank, then averaged over the ranks, as published.
    Contrastive losses are means over the global batch in both."""
    text_temperature_factor: Annotated[float, Bounds(above=0)] = 1.0
    """The text view divides its similarities by temperature x this. The temperature itself is shared by the views;
    above 1, TTC keeps pulling translations together after they already rank first (docs/log.md)."""
    label_smoothing: Share = 0.0
    """Share of the contrastive target spread evenly over all candidates."""
    contrastive: Literal["softmax", "sigmoid"] = "softmax"
    """Form of the contrastive losses. "softmax": as published; "sigmoid": SigLIP's, for each pair alone whether it
    belongs together. It needs `model.similarity_bias`."""
    contrastive_hardness: NotNegative = 0.0
    """"softmax": weight of a negative in the denominator, exp(this x similarity / temperature) over the mean of these
    of its row (HN-NCE: 0.25 or so); 0: all alike, as published."""
    contrastive_grad_scale: NotNegative = 1.0
    """Factor on the gradient of the contrastive losses into the features; 1/8 reproduces the published 8-GPU runs."""
    matryoshka_widths: tuple[Positive, ...] = ()
    """Widths, narrower than `model.projection_width`, for which the contrastive losses are computed once more: of the
    first components of every feature, as unit vectors of their own (arXiv 2205.13147), so that features may be cut to
    these widths (`cclm embed --width`). Hard negatives are drawn by whole features."""
    matryoshka_weight: NotNegative = 1.0
    """Weight of the loss of each such width, beside 1 of whole features."""
    hardness: NotNegative = 1.0
    """Hard negatives are drawn with weights softmax(hardness x similarity / temperature): 1 as published, 0 uniform."""
    hardness_start_step: Count = 0
    """With a ramp: draws are uniform up to this step. A matching head learns nothing from hard negatives of untrained
    encoders (docs/log.md)."""
    hardness_full_step: Count = 0
    """With a ramp: the hardness rises linearly from `hardness_start_step` and reaches its value here; 0: no ramp."""
    fusion_warmup_steps: Count = 0
    """Steps in which the fusion losses train only the fusion encoder and the heads; the encoders follow the
    contrastive losses alone."""

    def validation_errors(self) -> Iterator[str]:
        """Yield what contradicts itself."""
        start, full = self.hardness_start_step, self.hardness_full_step
        if full and start > full:
            yield f"hardness_start_step {start} is after hardness_full_step {full}"
        if list(self.matryoshka_widths) != sorted(set(self.matryoshka_widths)):
            yield f"matryoshka_widths: distinct and ascending, not {', '.join(map(str, self.matryoshka_widths))}"
        if self.contrastive == "sigmoid" and (self.label_smoothing or self.contrastive_hardness):
            yield "contrastive: sigmoid has neither label_smoothing nor contrastive_hardness"

    def hardness_at(self, step: int) -> float:
        """How hard negatives are at a step; see `hardness_start_step` and `hardness_full_step`."""
        start, full = self.hardness_start_step, self.hardness_full_step
        return self.hardness if step >= full else self.hardness * max(0.0, step - start) / max(1, full - start)
