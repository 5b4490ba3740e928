"""What the views with images share: their batches, and their rows for the fusion encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from numpy.typing import NDArray
from torch import Tensor

from cclm.data.batch import PixelScale, ViewBatch
from cclm.objectives.options import ObjectiveConfig
from cclm.views.view import Contrast, Contribution, EncodedView, FusionRows, LocatedRows, Pairing

BatchType = TypeVar("BatchType", bound="ImageBatch")


@dataclass(frozen=True, kw_only=True)
class ImageBatch(ViewBatch):
    """Rows of images, or of parts of images, with a text each."""

    images_BCHW: Float[Tensor, "b 3 h w"] | UInt8[Tensor, "b 3 h w"]
    """Normalised float32, or bytes, for `normalised` on the device."""
    pixel_scale: PixelScale
    """How images that are bytes are to be normalised."""
    identity_R: Int[Tensor, " r"]
    """63-bit hash of what each row is about; equal values are positives of each other."""

    @property
    def images(self) -> Tensor:
        """The images."""
        return self.images_BCHW

    def normalised(self: BatchType) -> BatchType:
        """Return the batch with float images (itself, if they are floats already)."""
        if self.images_BCHW.dtype != torch.uint8:
            return self
        return replace(self, images_BCHW=self.pixel_scale(self.images_BCHW))


class ImageBuffer:
    """The images of a batch, each copied into its place while it is still in the processor's cache: at the end, they
    would all come from memory again, and be held twice."""

    def __init__(self, count: int) -> None:
        self._count, self._filled = count, 0
        self._pixels_BCHW: NDArray[Any] = np.empty(0)

    def put(self, pixels_CHW: NDArray[Any]) -> NDArray[Any]:
        """Copy the next image into the batch; returns its place there, so that nobody keeps the original."""
        if self._filled == 0:
            self._pixels_BCHW = np.empty((self._count, *pixels_CHW.shape), pixels_CHW.dtype)
        place: NDArray[Any] = self._pixels_BCHW[self._filled]
        place[:] = pixels_CHW
        self._filled += 1
        return place

    def tensor(self) -> Tensor:
        """Return all of them, (B, 3, height, width)."""
        assert self._filled == self._count > 0, f"{self._filled} of {self._count} images"
        return torch.from_numpy(self._pixels_BCHW)


def image_rows(
    objectives: ObjectiveConfig,
    batch: ImageBatch,
    encoded: EncodedView,
    contrasts: Sequence[Contrast],
    located: LocatedRows | None = None,
    matching: str = "itm",
) -> Contribution:
    """Return the contribution of rows of images (or regions) with texts: image as memory, text as query.

    `located`: rows for a head of the view's own. `matching`: name of the matching loss.
    """
    images, texts = encoded.images, encoded.texts[0]
    assert images is not None
    pairing = Pairing(
        name=matching,
        weight=objectives.itm_weight,
        memory=images,
        query=texts,
        identity_R=batch.identity_R,
    )
    masked = FusionRows(query=encoded.masked, memory=images.states, memory_row_F=batch.matching_row_F)
    return Contribution(contrasts=contrasts, pairing=pairing, masked=masked, located=located)
