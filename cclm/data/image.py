"""Images → CHW arrays: the seeded training transforms, the evaluation transform.

Photographs (`random_resized_crop`) go the fast way: one resize on bytes, bytes as the result.

    header ─► size ─► crop box ─► decode at 1/1, 1/2, 1/4 or 1/8 ─► resize the box ─► flip ─► RandAugment ─► uint8 CHW

A JPEG can be decoded at 1/2, 1/4 or 1/8 of its size for less than the whole costs. That is done if the box still has
as many pixels as the result, so nothing is ever enlarged that was larger. Normalising is left to the device
(`Batch.normalised`): bytes are a quarter of the memory and of the traffic. All else becomes normalised float32 here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps
from torch.nn import functional

from cclm.data.decoding import decode_image, decode_scaled, image_size
from cclm.data.options import ImageTransformConfig, RandAugmentConfig, Resample, Triple

Pixels = NDArray[np.uint8]
Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels."""
SCALES = (8, 4, 2)
"""Denominators of the reduced decodings."""

RESAMPLE_FILTER: dict[Resample, Image.Resampling] = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "box": Image.Resampling.BOX,
}
"""Pillow's filter by the word of the configuration."""
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
"""Weights of red, green and blue in grey (ITU-R BT.601)."""
GREY = (128, 128, 128)
HIGHEST_LEVEL = 10
DRAWS_PER_OPERATION = 3


Operation = Callable[[Image.Image, float, int], Image.Image]
"""An image, the level in 0 … 1 and the side, 1 or -1 → the image after it."""
COLOURS: dict[str, Operation] = {
    "identity": lambda image, level, side: image,
    "autocontrast": lambda image, level, side: ImageOps.autocontrast(image),
    "equalize": lambda image, level, side: ImageOps.equalize(image),
    # 1.36 at level 7, up to white
    "brightness": lambda image, level, side: ImageEnhance.Brightness(image).enhance(0.1 + 1.8 * level),
    "sharpness": lambda image, level, side: ImageEnhance.Sharpness(image).enhance(0.1 + 1.8 * level),
}
WARPS: dict[str, Operation] = {
    # each row moves by 0.3 · level · its distance from the top, each column by that from the left
    "shear_x": lambda image, level, side: _warp(image, (1.0, -0.3 * level * side, 0.0, 0.0, 1.0, 0.0)),
    "shear_y": lambda image, level, side: _warp(image, (1.0, 0.0, 0.0, -0.3 * level * side, 1.0, 0.0)),
    # across, and down, by 10 · level pixels
    "translate_x": lambda image, level, side: _warp(image, (1.0, 0.0, -10.0 * level * side, 0.0, 1.0, 0.0)),
    "translate_y": lambda image, level, side: _warp(image, (1.0, 0.0, 0.0, 0.0, 1.0, -10.0 * level * side)),
    "rotate": lambda image, level, side: _turn(image, math.radians(30.0 * level * side)),
}
OPERATIONS: dict[str, Operation] = {**COLOURS, **WARPS}


def resize(image: Image.Image, config: ImageTransformConfig) -> Image.Image:
    """Resize to (size, size), antialiased, aspect ratio not kept."""
    if image.size == (config.size, config.size):
        return image
    return image.resize((config.size, config.size), RESAMPLE_FILTER[config.resample])


def prepare(image: Image.Image, config: ImageTransformConfig) -> Image.Image:
    """The deterministic first part of the training transform, worth keeping in memory."""
    return image if config.method == "random_resized_crop" else resize(image, config)


def eval_image(image: Image.Image, config: ImageTransformConfig) -> NDArray[np.float32]:
    """Resize and normalise: (3, size, size), float32."""
    return _normalised(resize(image, config), 1.0, config)


def train_image(
    image: Image.Image, config: ImageTransformConfig, generator: np.random.Generator
) -> NDArray[np.float32]:
    """Augment an image that went through `prepare`, by `affine` or `none`: (3, size, size), float32."""
    assert config.method != "random_resized_crop", "`photo` makes these, as bytes"
    if config.method == "none":
        return eval_image(image, config)
    draws = generator.random(26).tolist()
    flip = draws[0] < config.flip_probability
    light = 1.0 + config.brightness * (2.0 * draws[1] - 1.0)
    image = _jitter(image, config, flip, draws[2:6])
    if config.contrast == config.saturation == config.hue_rad == 0.0:
        return _normalised(image, light, config)
    return _recoloured(image, light, config, draws[6:9])


def crop_box(width: int, height: int, config: ImageTransformConfig, draws: list[float]) -> Box:
    """A random box: area and log-ratio uniform, six attempts of four draws each, then the central crop."""
    (low_area, high_area), (low_ratio, high_ratio) = config.crop_area, config.crop_ratio
    for start in range(0, 24, 4):
        area, ratio, across, down = draws[start : start + 4]
        target = width * height * (low_area + area * (high_area - low_area))
        shape = math.exp(math.log(low_ratio) + ratio * (math.log(high_ratio) - math.log(low_ratio)))
        w, h = round(math.sqrt(target * shape)), round(math.sqrt(target / shape))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(across * (width - w + 1)), int(down * (height - h + 1))
            return left, top, left + w, top + h
    w, h = width, height
    if width / height < low_ratio:
        h = min(height, round(width / low_ratio))
    elif width / height > high_ratio:
        w = min(width, round(height * high_ratio))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def photo(source: bytes | Image.Image, config: ImageTransformConfig, generator: np.random.Generator) -> Pixels:
    """A random resized crop, flipped by a coin, augmented as the config says: (3, size, size), uint8.

    `generator` gives 26 draws for crop and flip, then those of RandAugment. Errors: `decode_image`.
    """
    draws = generator.random(26).tolist()
    width, height = photo_size(source)
    box = crop_box(width, height, config, draws[2:])
    return finish(cut(source, box, config), draws[0] < config.flip_probability, config, generator)


def training_pixels(
    source: bytes | Image.Image, config: ImageTransformConfig, generator: np.random.Generator
) -> Pixels | NDArray[np.float32]:
    """An image after the training transform: bytes that the device will normalise (crops), or normalised floats."""
    if config.method == "random_resized_crop":
        return photo(source, config, generator)
    return train_image(decode_image(source) if isinstance(source, bytes) else source, config, generator)


def cut(source: bytes | Image.Image, box: Box, config: ImageTransformConfig) -> Pixels:
    """A box (in pixels of the whole image) at its final size, (size, size, 3); errors: `decode_image`."""
    if isinstance(source, Image.Image):
        return resize_box(np.asarray(source), box, config)
    scale = scale_for(box, config.size)
    pixels = decode_scaled(source, scale)
    if scale > 1:
        box = scaled_box(box, photo_size(source), (pixels.shape[1], pixels.shape[0]))
    return resize_box(pixels, box, config)


def finish(pixels: Pixels, flip: bool, config: ImageTransformConfig, generator: np.random.Generator) -> Pixels:
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


def scale_for(box: Box, size: int) -> int:
    """The largest denominator at which a box (left, top, right, bottom) keeps `size` pixels in both directions."""
    left, top, right, bottom = box
    shortest = min(right - left, bottom - top)
    return next((scale for scale in SCALES if shortest >= scale * size), 1)


def scaled_box(box: Box, whole: tuple[int, int], reduced: tuple[int, int]) -> Box:
    """A box of the whole image in whole pixels of the reduced one (sizes are width, height)."""
    if whole == reduced:
        return box
    left, top, right, bottom = box
    x, y = reduced[0] / whole[0], reduced[1] / whole[1]
    return round(left * x), round(top * y), min(reduced[0], round(right * x)), min(reduced[1], round(bottom * y))


def resize_box(pixels: Pixels, box: Box, config: ImageTransformConfig) -> Pixels:
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


def _jitter(image: Image.Image, config: ImageTransformConfig, flip: bool, draws: list[float]) -> Image.Image:
    """Scale, turn, shift and flip about the centre in one resampling."""
    scale, angle, across, down = (2.0 * draw - 1.0 for draw in draws)
    zoom = 1.0 / (1.0 + config.scale * scale)
    cosine, sine = math.cos(config.rotation_rad * angle) * zoom, math.sin(config.rotation_rad * angle) * zoom
    middle = config.size / 2.0
    move_x, move_y = config.shift * across * config.size, config.shift * down * config.size
    # output pixel (x, y) takes the input at A · ((x, y) − middle − move) + middle; a flip mirrors x first
    side = -1.0 if flip else 1.0
    a, b, d, e = cosine * side, sine, -sine * side, cosine
    c = middle - a * (middle + move_x) - b * (middle + move_y)
    f = middle - d * (middle + move_x) - e * (middle + move_y)
    return image.transform(
        image.size,
        Image.Transform.AFFINE,
        (a, b, c, d, e, f),
        resample=Image.Resampling.BILINEAR,
        fillcolor=config.background,
    )


def color_matrix(contrast: float, saturation: float, hue_rad: float) -> NDArray[np.float32]:
    """3×3 matrix on RGB columns: rotation about (1, 1, 1) (Rodrigues), then saturation, then contrast, as factors.

    Greys stay greys; with contrast 1 they do not move at all.
    """
    cosine, sine = math.cos(hue_rad), math.sin(hue_rad) / math.sqrt(3.0)
    cross = np.array([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]])
    turn = cosine * np.eye(3) + sine * cross + (1.0 - cosine) / 3.0
    dull = saturation * np.eye(3) + (1.0 - saturation) * np.tile(_LUMA, (3, 1))
    return (contrast * (dull @ turn)).astype(np.float32)


def _recoloured(
    image: Image.Image, light: float, config: ImageTransformConfig, draws: list[float]
) -> NDArray[np.float32]:
    """Like `_normalised`, with contrast, saturation and hue drawn around 1, 1 and 0."""
    contrast, saturation, hue = (2.0 * draw - 1.0 for draw in draws)
    factor = 1.0 + config.contrast * contrast
    matrix = color_matrix(factor, 1.0 + config.saturation * saturation, config.hue_rad * hue)
    flat = np.asarray(image).reshape(-1, 3).T.astype(np.float32)
    grey = float(_LUMA @ flat.mean(1))
    pixels = np.clip(light * (matrix @ flat + (1.0 - factor) * grey), 0.0, 255.0)
    gain, offset = _gain_offset(config.mean, config.std)
    pixels = pixels.reshape(3, image.height, image.width)
    return np.ascontiguousarray(pixels * gain - offset, dtype=np.float32)


def _normalised(image: Image.Image, light: float, config: ImageTransformConfig) -> NDArray[np.float32]:
    """HWC bytes → CHW float32: brighten, clip at white, subtract the mean, divide by the deviation."""
    gain, offset = _gain_offset(config.mean, config.std)
    pixels: NDArray[np.float32] = np.asarray(image).transpose(2, 0, 1).astype(np.float32, order="C")
    if light != 1.0:
        pixels *= np.float32(light)
        np.minimum(pixels, np.float32(255.0), out=pixels)
    pixels *= gain
    pixels -= offset
    return pixels


@lru_cache(maxsize=8)
def _gain_offset(mean: Triple, std: Triple) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    mean_C, std_C = np.array(mean)[:, None, None], np.array(std)[:, None, None]
    return (1 / (255 * std_C)).astype(np.float32), (mean_C / std_C).astype(np.float32)


def randaugment(image: Image.Image, config: RandAugmentConfig, draws: Sequence[float]) -> Image.Image:
    """RandAugment as CCLM's pre-training used it: some operations out of ten, each run with probability ½.

    Operations are drawn with replacement, so on average one of two happens and a quarter of the images stays as it is.
    The strength is the same for every image; only the side (left or right, clockwise or not) is drawn: of each
    operation's uniform `draws` one says which, one whether, one which side. Brightness and sharpness are only ever
    raised. Warps are bilinear, and grey shows where the image was moved away.

    Bytes in, bytes out, by Pillow, whose autocontrast and equalize the published code follows too. Its warps put the
    origin in the middle of the first pixel; here it is that pixel's corner (half a pixel, times the shear).
    """
    operations = list((COLOURS if config.colour_only else OPERATIONS).values())
    for start in range(0, DRAWS_PER_OPERATION * config.num_operations, DRAWS_PER_OPERATION):
        which, whether, side = draws[start : start + DRAWS_PER_OPERATION]
        if whether < config.probability:
            operation = operations[int(which * len(operations))]
            image = operation(image, config.level / HIGHEST_LEVEL, 1 if side < 0.5 else -1)
    return image


def _warp(image: Image.Image, coefficients: tuple[float, ...]) -> Image.Image:
    """Each output pixel (x, y) takes the input at (a x + b y + c, d x + e y + f)."""
    return image.transform(
        image.size, Image.Transform.AFFINE, coefficients, resample=Image.Resampling.BILINEAR, fillcolor=GREY
    )


def _turn(image: Image.Image, angle: float) -> Image.Image:
    cosine, sine, x, y = math.cos(angle), math.sin(angle), image.width / 2, image.height / 2
    return _warp(image, (cosine, sine, x - cosine * x - sine * y, -sine, cosine, y + sine * x - cosine * y))
