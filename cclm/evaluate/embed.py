"""Images and texts through a model, in batches: states for the fusion encoder, features for the dual encoder.

Given tensors, not files: whoever calls has decoded the images and cut the texts into tokens. Texts are encoded
once each and sorted by length, so that little is spent on padding. Nothing here knows ranks or gradients.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cclm.model.modeling_cclm import CCLMModel


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """What a model makes of N images or of N texts."""

    state_NLD: Float[Tensor, "n l d"]
    """Encoder states; where the mask is False the values mean nothing."""
    mask_NL: Bool[Tensor, "n l"]
    """True where a real token stands (everywhere, for images)."""
    feature_NE: Float[Tensor, "n e"]
    """L2-normalised features of the dual encoder."""


@torch.inference_mode()
def encode_images(model: CCLMModel, images_NCHW: Float[Tensor, "n 3 h w"], *, batch_size: int = 256) -> Encoded:
    """Encode normalised images, `batch_size` at a time."""
    states = [model.encode_images(images_BCHW) for images_BCHW in torch.split(images_NCHW, batch_size)]
    features = [model.project_images(state_BND) for state_BND in states]
    state_NLD = torch.cat(states)
    mask_NL = torch.ones(state_NLD.shape[:2], dtype=torch.bool, device=state_NLD.device)
    return Encoded(state_NLD=state_NLD, mask_NL=mask_NL, feature_NE=torch.cat(features))


@torch.inference_mode()
def encode_texts(
    model: CCLMModel, ids_NL: Int[Tensor, "n l"], mask_NL: Bool[Tensor, "n l"], *, batch_size: int = 256
) -> Encoded:
    """Encode texts, each distinct one once, short ones first; the order of the result is the order of the input.

    Encoding equal texts once makes their features equal to the last bit, so that ties stay ties.
    """
    mask_NL = mask_NL.bool()
    keyed_NL = torch.where(mask_NL, ids_NL, torch.full_like(ids_NL, -1))
    distinct_UL, row_N = torch.unique(keyed_NL, dim=0, return_inverse=True)
    order_U = (distinct_UL >= 0).sum(dim=1).argsort(stable=True)
    pad_id = int(ids_NL[~mask_NL][0]) if not bool(mask_NL.all()) else 0
    states: list[Tensor] = []
    features: list[Tensor] = []
    for chosen_B in torch.split(order_U, batch_size):
        ids_BL = distinct_UL[chosen_B]
        mask_BL = ids_BL >= 0
        length = int(mask_BL.sum(dim=1).max())
        ids_BL, mask_BL = ids_BL[:, :length].clamp(min=0), mask_BL[:, :length]
        ids_BL = ids_BL.masked_fill(~mask_BL, pad_id)
        state_BLD = model.encode_texts(ids_BL, mask_BL)
        features.append(model.project_texts(state_BLD, mask_BL))
        states.append(torch.nn.functional.pad(state_BLD, (0, 0, 0, ids_NL.shape[1] - length)))
    back_U = order_U.argsort()
    source_N = back_U[row_N]
    return Encoded(state_NLD=torch.cat(states)[source_N], mask_NL=mask_NL, feature_NE=torch.cat(features)[source_N])
