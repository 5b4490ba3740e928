"""From pictures to the network's input: RGB on white, resize, normalise. PIL and numpy only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from transformers import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor


class CCLMImageProcessor(BaseImageProcessor):  # type: ignore[misc]  # transformers is seen untyped
    """Resize to a square and normalise each channel.

    Args:
        size: `{"height": pixels, "width": pixels}`.
        resample: PIL's number of the resize filter (4 box, 2 bilinear, 3 bicubic).
        image_mean: per channel, of values in [0, 1].
        image_std: per channel.
    """

    model_input_names = ["pixel_values"]  # noqa: RUF012  # HF's form

    def __init__(
        self,
        size: dict[str, int] | None = None,
        resample: int = int(Image.Resampling.BOX),
        image_mean: Sequence[float] = (0.8, 0.8, 0.8),
        image_std: Sequence[float] = (0.3, 0.3, 0.3),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.size = dict(size) if size else {"height": 32, "width": 32}
        self.resample = int(resample)
        self.image_mean = list(image_mean)
        self.image_std = list(image_std)

    def preprocess(
        self,
        images: Image.Image | Sequence[Image.Image] | Sequence[Sequence[Image.Image]],
        return_tensors: str | None = None,
        **_: Any,
    ) -> BatchFeature:
        """One picture or several to `pixel_values` (B, 3, height, width), float32; lists of M to (B, M, 3, …).

        Raises:
            TypeError: something that is not a PIL picture.
        """
        pictures = [images] if isinstance(images, Image.Image) else list(images)
        pixels = [
            self._several(picture) if isinstance(picture, list | tuple) else self._pixels(picture)
            for picture in pictures
        ]
        return BatchFeature(data={"pixel_values": np.stack(pixels)}, tensor_type=return_tensors)

    def _several(self, pictures: Sequence[Any]) -> npt.NDArray[np.float32]:
        """The pictures of one text."""
        return np.stack([self._pixels(picture) for picture in pictures])

    def _pixels(self, picture: Any) -> npt.NDArray[np.float32]:
        """One picture."""
        if not isinstance(picture, Image.Image):
            raise TypeError(f"expected PIL images, got {type(picture).__name__}. Open the file with PIL.Image.open.")
        side = (self.size["width"], self.size["height"])
        rgb = _on_white(picture)
        if rgb.size != side:
            rgb = rgb.resize(side, Image.Resampling(self.resample))
        mean, std = (np.array(values, np.float64)[:, None, None] for values in (self.image_mean, self.image_std))
        # the same two operations as in training, so that the values are equal to the last bit
        values_CHW: npt.NDArray[np.float32] = np.asarray(rgb).transpose(2, 0, 1).astype(np.float32, order="C")
        values_CHW *= (1 / (255 * std)).astype(np.float32)
        values_CHW -= (mean / std).astype(np.float32)
        return values_CHW


def _on_white(picture: Image.Image) -> Image.Image:
    """RGB; what is transparent becomes white."""
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        layer = picture.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    return picture if picture.mode == "RGB" else picture.convert("RGB")


CCLMImageProcessor.register_for_auto_class()
