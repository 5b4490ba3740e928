"""Photographs, the fast way: a smaller decoding where the crop allows it, one resize on bytes, bytes as the result.

    header ─► size ─► crop box ─► decode at 1/1, 1/2, 1/4 or 1/8 ─► resize the box ─► flip ─► RandAugment ─► uint8 CHW

A JPEG can be decoded at 1/2, 1/4 or 1/8 of its size for less than the whole costs. That is done if the box still has
as many pixels as the result, so nothing is ever enlarged that was larger. Normalising is left to the device
(`Batch.normalised`): bytes are a quarter of the memory and of the traffic.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional

from cclm.data.decoding import decode_image, decode_scaled, image_size
from cclm.data.image import crop_box, train_image
from cclm.data.options import ImageTransformConfig
from cclm.data.randaugment import DRAWS_PER_OPERATION, randaugment

Pixels = NDArray[np.uint8]
SCALES = (8, 4, 2)
"""Denominators of the reduced decodings."""


def photo(source: bytes | Image.Image, config: ImageTransformConfig, generator: np.random.Generator) -> Pixels:
    """A random resized crop, flipped by a coin, augmented as the config says: (3, size, size), uint8.

    Args:
        source: the encoded image, or a decoded one.
        config: `crop_area`, `crop_ratio`, `size`, `resample`, `flip_probability`, `randaugment`.
        generator: the sample's own; 26 draws for crop and flip, then those of RandAugment.

    Raises:
        DataError: as `image.decode_image`.
    """
    draws = generator.random(26).tolist()
    width, height = photo_size(source)
    box = crop_box(width, height, config, draws[2:])
    return finish(cut(source, box, config), draws[0] < config.flip_probability, config, generator)


def training_pixels(
    source: bytes | Image.Image, config: ImageTransformConfig, generator: np.random.Generator
) -> NDArray[np.uint8] | NDArray[np.float32]:
    """An image after the training transform: bytes that the device will normalise (crops), or normalised floats."""
    if config.method == "random_resized_crop":
        return photo(source, config, generator)
    return train_image(decode_image(source) if isinstance(source, bytes) else source, config, generator)


def cut(source: bytes | Image.Image, box: tuple[int, int, int, int], config: ImageTransformConfig) -> Pixels:
    """A box (in pixels of the whole image) at its final size, (size, size, 3); errors: `decode_image`."""
    if isinstance(source, Image.Image):
        return resize_box(np.asarray(source), box, config)
    scale = scale_for(box, config.size)
    pixels = decode_scaled(source, scale)
    if scale > 1:
        box = scaled_box(box, photo_size(source), (pixels.shape[1], pixels.shape[0]))
    return resize_box(pixels, box, config)


def finish(
    pixels: Pixels, flip: bool, config: ImageTransformConfig, generator: np.random.Generator
) -> NDArray[np.uint8]:
    """Flip, RandAugment (its draws come from `generator`), and (height, width, 3) → (3, height, width), a view."""
    if flip:  # torch, because numpy moves the bytes of a pixel one by one, in five times the time
        pixels = torch.from_numpy(np.require(pixels, requirements="W")).flip(1).numpy()
    if config.randaugment is not None:
        draws = generator.random(DRAWS_PER_OPERATION * config.randaugment.num_operations).tolist()
        pixels = np.asarray(randaugment(Image.fromarray(pixels), config.randaugment, draws))
    result: Pixels = pixels.transpose(2, 0, 1)
    return result


def photo_size(source: bytes | Image.Image) -> tuple[int, int]:
    """Width and height of an encoded or a decoded image, upright (errors: `decode_image`)."""
    return source.size if isinstance(source, Image.Image) else image_size(source)


def scale_for(box: tuple[int, int, int, int], size: int) -> int:
    """The largest denominator at which a box (left, top, right, bottom) keeps `size` pixels in both directions."""
    left, top, right, bottom = box
    shortest = min(right - left, bottom - top)
    return next((scale for scale in SCALES if shortest >= scale * size), 1)


def scaled_box(
    box: tuple[int, int, int, int], whole: tuple[int, int], reduced: tuple[int, int]
) -> tuple[int, int, int, int]:
    """A box of the whole image in whole pixels of the reduced one (sizes are width, height)."""
    if whole == reduced:
        return box
    left, top, right, bottom = box
    x, y = reduced[0] / whole[0], reduced[1] / whole[1]
    return round(left * x), round(top * y), min(reduced[0], round(right * x)), min(reduced[1], round(bottom * y))


def resize_box(pixels: Pixels, box: tuple[int, int, int, int], config: ImageTransformConfig) -> Pixels:
    """Cut out a box and resize it to (size, size, 3), antialiased, in one pass over bytes."""
    left, top, right, bottom = box
    if config.resample == "box":  # torch has no such filter
        whole = Image.fromarray(pixels)
        return np.asarray(whole.resize((config.size, config.size), Image.Resampling.BOX, box))
    part = torch.from_numpy(np.require(pixels[top:bottom, left:right], requirements="W"))
    part_1CHW = part.permute(2, 0, 1)[None]
    resized_1CHW = functional.interpolate(part_1CHW, (config.size, config.size), mode=config.resample, antialias=True)
    result: Pixels = resized_1CHW[0].permute(1, 2, 0).numpy()
    return result
