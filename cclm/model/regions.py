"""Boxes of an image as the fusion encoder and the contrastive loss see them (CCLM-4M's region branch)."""

from __future__ import annotations

import torch
from torch import Tensor

from .packing import masked_mean

try:  # noqa: SIM105  # annotations only: an exported checkpoint loads without it, and HF skips imports in a try
    from jaxtyping import Bool, Float, Int
except ImportError:
    pass


def region_tokens(
    image_BND: Float[Tensor, "b n d"], image_of_R: Int[Tensor, " r"], region_mask_RN: Bool[Tensor, "r n"]
) -> Float[Tensor, "r n d"]:
    """Tokens of R regions of B encoded images.

    The patches are those of the whole image, unchanged (they have seen all of it); token 0 becomes the mean of the
    patches inside the region. The region itself goes into the fusion encoder as the memory mask.

    Args:
        image_BND: encoded images, token 0 the whole image.
        image_of_R: which image each region lies in.
        region_mask_RN: True for the patches of the region (at least one), and for token 0.
    """
    patch_RPD = image_BND[image_of_R, 1:]
    return torch.cat([masked_mean(patch_RPD, region_mask_RN[:, 1:])[:, None], patch_RPD], 1)
