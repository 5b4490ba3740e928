"""RandAugment as CCLM's pre-training used it: some operations out of ten, each run with probability ½.

Operations are drawn with replacement, so on average one of two happens and a quarter of the images stays as it is.
The strength is the same for every image; only the side (left or right, clockwise or not) is drawn. Brightness and
sharpness are only ever raised. Warps are bilinear, and grey shows where the image was moved away.

Bytes in, bytes out, by Pillow, whose autocontrast and equalize the published code follows too. Its warps put the origin
in the middle of the first pixel; here it is that pixel's corner (half a pixel, times the shear).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from PIL import Image, ImageEnhance, ImageOps

from cclm.data.options import RandAugmentConfig

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


def randaugment(image: Image.Image, config: RandAugmentConfig, draws: Sequence[float]) -> Image.Image:
    """Augment an RGB image of the final size; of each operation's uniform `draws` one says which, one whether, one
    which side."""
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
    """Turn about the middle."""
    cosine, sine, x, y = math.cos(angle), math.sin(angle), image.width / 2, image.height / 2
    return _warp(image, (cosine, sine, x - cosine * x - sine * y, -sine, cosine, y + sine * x - cosine * y))
