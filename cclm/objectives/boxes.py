"""Box losses (CCLM-4M): where in the image is what the text describes?

Boxes are (centre x, centre y, width, height) as shares of the image's sides, as the box head gives them.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

SMALLEST_AREA = 1e-12
"""Union and hull are divided by; boxes of no size must not give NaN."""


def box_losses(
    box_R4: Float[Tensor, "r 4"], target_R4: Float[Tensor, "r 4"]
) -> tuple[Float[Tensor, " r"], Float[Tensor, " r"]]:
    """Return each row's L1 distance (the sum of its four coordinates) and 1 - GIoU (spec §2.6), float32."""
    box_R4, target_R4 = box_R4.float(), target_R4.float()
    return (box_R4 - target_R4).abs().sum(1), 1.0 - generalised_iou(box_R4, target_R4)


def generalised_iou(first_R4: Float[Tensor, "r 4"], second_R4: Float[Tensor, "r 4"]) -> Float[Tensor, " r"]:
    """GIoU (arXiv 1902.09630) of box r with box r: IoU less the share of the hull that neither covers; in (-1, 1]."""
    (low_R2, high_R2), (other_low_R2, other_high_R2) = corners(first_R4), corners(second_R4)
    shared_R = _area(torch.maximum(low_R2, other_low_R2), torch.minimum(high_R2, other_high_R2))
    hull_R = _area(torch.minimum(low_R2, other_low_R2), torch.maximum(high_R2, other_high_R2))
    union_R = _area(low_R2, high_R2) + _area(other_low_R2, other_high_R2) - shared_R
    return shared_R / union_R.clamp_min(SMALLEST_AREA) - (hull_R - union_R) / hull_R.clamp_min(SMALLEST_AREA)


def corners(box_R4: Float[Tensor, "r 4"]) -> tuple[Float[Tensor, "r 2"], Float[Tensor, "r 2"]]:
    """(x, y) of the corner with the lowest and of the one with the highest coordinates."""
    centre_R2, half_R2 = box_R4[:, :2], box_R4[:, 2:] / 2
    return centre_R2 - half_R2, centre_R2 + half_R2


def _area(low_R2: Tensor, high_R2: Tensor) -> Tensor:
    """Area between corners; zero where they are the wrong way round."""
    return (high_R2 - low_R2).clamp_min(0.0).prod(1)
