"""A stand-in for a model: a picture's first two pixels are its feature, a text's first id is its name."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor


class NamingModel:
    """Texts are [name, filler …]; image n has its name in pixel 0. Both become points on a circle of `num_names`.

    `dual_error` turns image features by that angle, so the dual encoder confuses neighbours; the matching head
    compares names and is always right (or, with `knows=False`, always answers zero).
    """

    def __init__(self, num_names: int, dual_error: float = 0.0, knows: bool = True) -> None:
        self.num_names, self.dual_error, self.knows = num_names, dual_error, knows
        self.texts_encoded = 0
        self.pairs_fused = 0

    def _point(self, name_N: Tensor, error: float = 0.0) -> Tensor:
        angle_N = name_N.float() / self.num_names * 2 * torch.pi + error
        return torch.stack([angle_N.cos(), angle_N.sin()], dim=-1)

    def encode_images(self, images_BCHW: Tensor) -> Tensor:
        return images_BCHW[:, :1, 0, :1].expand(-1, 3, 1).clone()

    def encode_texts(self, ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
        self.texts_encoded += len(ids_BL)
        return torch.where(mask_BL, ids_BL, 10_000 + ids_BL)[..., None].float()

    def project_images(self, image_BND: Tensor) -> Tensor:
        return self._point(image_BND[:, 0, 0], self.dual_error)

    def project_texts(self, text_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        return self._point(text_BLD[:, 0, 0])

    def fuse(self, text_BLD: Tensor, mask_BL: Tensor, memory_BND: Tensor, memory_mask_BN: Tensor | None) -> Tensor:
        self.pairs_fused += len(text_BLD)
        assert memory_mask_BN is None and memory_BND.shape[1] == 3
        return text_BLD - memory_BND[:, :1]

    def match_logits(self, fused_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        match_B = torch.where(fused_BLD[:, 0, 0] == 0, 4.0, -4.0) * self.knows
        return torch.stack([torch.zeros_like(match_B), match_B], dim=-1)

    def temperature(self) -> Tensor:
        return torch.tensor([0.5])


@pytest.fixture
def naming_model() -> type[NamingModel]:
    return NamingModel


@pytest.fixture
def pictures() -> object:
    def make(names: list[int]) -> Tensor:
        return torch.tensor(names).float()[:, None, None, None].expand(-1, 3, 2, 2).clone()

    return make


@pytest.fixture
def words() -> object:
    def make(names: list[int], lengths: list[int]) -> tuple[Tensor, Tensor]:
        """Padded ids (pad 99) and mask."""
        width = max(lengths)
        ids = [[name, *range(1, length), *[99] * (width - length)] for name, length in zip(names, lengths, strict=True)]
        mask = [[column < length for column in range(width)] for length in lengths]
        return torch.tensor(ids), torch.tensor(mask)

    return make
