"""From images to the network's input: RGB on white, upright, resize, normalise. PIL and numpy only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from transformers import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor

from .image_rgb import to_rgb

HONOURED = (
    "size", "resample", "image_mean", "image_std", "do_resize", "do_rescale", "rescale_factor", "do_normalize",
    "do_convert_rgb", "data_format", "return_tensors",
)  # fmt: skip
"""Options of a call (and, but for the last, of the processor) that do what they do in `transformers`."""
NOT_HERE = (
    "do_center_crop", "crop_size", "do_pad", "pad_size", "input_data_format", "device", "default_to_square",
    "disable_grouping", "image_seq_length",
)  # fmt: skip
"""Options that other processors have: refused where they ask for something."""
FORMATS = ("channels_first", "channels_last")
BOOKKEEPING = ("auto_map", "image_processor_type", "processor_class", "feature_extractor_type")
"""What `transformers` itself writes into preprocessor_config.json."""


class CCLMImageProcessor(BaseImageProcessor):  # type: ignore[misc]  # transformers is seen untyped
    """Resize to a rectangle and normalise each channel.

    Args:
        size: `{"height": pixels, "width": pixels}`; a number for a square.
        resample: PIL's number of the resize filter (4 box, 2 bilinear, 3 bicubic).
        image_mean: per channel or for all, of values in [0, 1].
        image_std: per channel or for all.
        do_resize: whether to resize; without it all images of a call need one size.
        do_rescale: whether to multiply the bytes with `rescale_factor`.
        rescale_factor: 1/255 brings bytes to [0, 1].
        do_normalize: whether to subtract the mean and divide by the deviation.
        do_convert_rgb: True; the network knows no other images.
        data_format: "channels_first" or "channels_last".
    """

    model_input_names = ["pixel_values"]  # noqa: RUF012  # HF's form
    to_rgb = staticmethod(to_rgb)
    """For what converts images itself before it calls a processor, as the pipelines of `transformers` do."""

    def __init__(
        self,
        size: Any = None,
        resample: int = int(Image.Resampling.BOX),
        image_mean: Sequence[float] | float = (0.8, 0.8, 0.8),
        image_std: Sequence[float] | float = (0.3, 0.3, 0.3),
        do_resize: bool = True,
        do_rescale: bool = True,
        rescale_factor: float = 1 / 255,
        do_normalize: bool = True,
        do_convert_rgb: bool = True,
        data_format: str = "channels_first",
        **kwargs: Any,
    ) -> None:
        check_options({name: value for name, value in kwargs.items() if name not in BOOKKEEPING})
        super().__init__(**{name: value for name, value in kwargs.items() if name in BOOKKEEPING})
        self.size = _rectangle(32 if size is None else size)
        self.resample = int(resample)
        self.image_mean = _per_channel("image_mean", image_mean)
        self.image_std = _per_channel("image_std", image_std)
        self.do_resize, self.do_rescale, self.do_normalize = bool(do_resize), bool(do_rescale), bool(do_normalize)
        self.rescale_factor = float(rescale_factor)
        self.do_convert_rgb, self.data_format = True, str(getattr(data_format, "value", data_format))
        if not do_convert_rgb or self.data_format not in FORMATS:
            raise ValueError(f"expected do_convert_rgb=True and a data_format of {FORMATS}, got something else.")

    def preprocess(
        self,
        images: Image.Image | Sequence[Image.Image] | Sequence[Sequence[Image.Image]],
        return_tensors: str | None = None,
        **options: Any,
    ) -> BatchFeature:
        """Turn an image or several into `pixel_values` (B, 3, height, width), float32; lists of M into (B, M, 3, …).

        Args:
            images: PIL images, as `PIL.Image.open` gives them: of any mode, with their EXIF orientation.
            return_tensors: "pt", "np" or None.
            options: of this call, in place of the processor's own: `HONOURED`.

        Raises:
            TypeError: something that is not a PIL image, or an option that no image processor has.
            ValueError: an option, or a value of one, that this processor does not have; no image.
        """
        given = {name: value for name, value in options.items() if value is not None}
        own = {name: getattr(self, name) for name in HONOURED[:-1]}
        processor = CCLMImageProcessor(**{**own, **given}) if given else self
        listed = list(images) if isinstance(images, Iterable) else [images]
        if not listed:
            raise ValueError("images: expected at least one image, got an empty list. Leave images away instead.")
        one = processor._pixels
        pixels = [
            np.stack(list(map(one, image))) if isinstance(image, list | tuple) else one(image) for image in listed
        ]
        return BatchFeature(data={"pixel_values": np.stack(pixels)}, tensor_type=return_tensors)

    def _pixels(self, image: Any) -> npt.NDArray[np.float32]:
        if not isinstance(image, Image.Image):
            opens = "Open a file with PIL.Image.open, an array with PIL.Image.fromarray."
            raise TypeError(f"expected PIL images, got {type(image).__name__}. {opens}")
        rgb, side = to_rgb(image), (self.size["width"], self.size["height"])
        if self.do_resize and rgb.size != side:
            rgb = rgb.resize(side, Image.Resampling(self.resample))
        mean, std = (np.array(values, np.float64)[:, None, None] for values in (self.image_mean, self.image_std))
        if not self.do_normalize:
            mean, std = np.zeros_like(mean), np.ones_like(std)
        white = 1 / self.rescale_factor if self.do_rescale else 1.0
        # the same two operations as in training, so that the values are equal to the last bit
        values_CHW: npt.NDArray[np.float32] = np.asarray(rgb).transpose(2, 0, 1).astype(np.float32, order="C")
        values_CHW *= (1 / (white * std)).astype(np.float32)
        values_CHW -= (mean / std).astype(np.float32)
        return values_CHW if self.data_format == FORMATS[0] else values_CHW.transpose(1, 2, 0)


def check_options(options: dict[str, Any]) -> None:
    """Raise for options that would change nothing: TypeError for unknown names, ValueError for other processors'."""
    for name, value in options.items():
        if name not in NOT_HERE:
            raise TypeError(f"expected an option of image processors ({', '.join(HONOURED)}), got {name!r}.")
        if value is not None and value is not False:
            raise ValueError(f"{name}: expected an option of this processor ({', '.join(HONOURED)}). Leave it away.")


def _rectangle(size: Any) -> dict[str, int]:
    """`size` in each of the forms that `transformers` knows for a fixed size."""
    if isinstance(size, int):
        size = (size, size)
    if isinstance(size, list | tuple) and len(size) in (1, 2):
        size = {"height": size[0], "width": size[-1]}
    given = {name: value for name, value in dict(size).items() if value is not None}
    if set(given) != {"height", "width"} or not all(isinstance(side, int) and side > 0 for side in given.values()):
        raise ValueError(f'size: expected {{"height": pixels, "width": pixels}} or a number, got {size!r}.')
    return given


def _per_channel(name: str, values: Any) -> list[float]:
    found = [float(value) for value in (values if isinstance(values, list | tuple) else [values] * 3)]
    if len(found) != 3 or (name == "image_std" and 0.0 in found):
        raise ValueError(f"{name}: expected a number for each of three channels, got {values!r}.")
    return found


CCLMImageProcessor.register_for_auto_class()
