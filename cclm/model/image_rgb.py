"""An image as people see it: upright, RGB, 8 bits, on white. PIL and numpy only.

Every path from a file to pixels ends in `to_rgb`: shard builds, training, evaluation, `cclm embed`, and the image
processor of an exported folder, which carries this file.

    load ─▶ 16-bit, 32-bit and float greys to 8 bits ─▶ transparency onto white ─▶ RGB ─▶ turned as the EXIF tag says
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
from PIL import Image

ORIENTATION = 0x0112
"""The EXIF (and TIFF) tag that says how a camera was held."""
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns stored pixels upright, by the tag's value; 1, and what no camera writes, leave them as they are."""
SWAPS_SIDES = (5, 6, 7, 8)
"""Orientations under which width and height change places."""
FULL_SCALES = (1.0, 255.0, 65535.0)
"""Whites that greys of more than 8 bits may have; the smallest that no pixel exceeds is taken, for integers 65535."""
STALE = ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp")
"""Entries of `Image.info` that may repeat the tag: a file written from turned pixels would be turned again."""


def to_rgb(image: Image.Image) -> Image.Image:
    """Return the image as RGB, turned upright, its transparent parts white; the first frame, if it has several.

    Raises:
        Exception: of any class, if the file is broken and Pillow only notices now.
    """
    key = _transparent_colour(image)  # only known before the pixels are loaded
    image.load()
    orientation = orientation_of(image)  # only right afterwards: Pillow turns TIFF files itself while it loads them
    rgb = _on_white(image, key)
    if orientation in TURNS:
        rgb = rgb.transpose(TURNS[orientation])
    for name in (*STALE, *(["icc_profile"] if image.mode in ("CMYK", "LAB") else [])):
        rgb.info.pop(name, None)
    return rgb


def orientation_of(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 where there is none, or one that cannot be read."""
    orientation: Any = 1
    with suppress(Exception):  # cameras and editors write all kinds of broken tags, and none of them spoils the pixels
        orientation = image.getexif().get(ORIENTATION, 1)
        orientation = orientation if orientation in TURNS else 1
    return int(orientation)


def _on_white(image: Image.Image, key: Any) -> Image.Image:
    """RGB, not turned; `key` is the colour that is transparent, where the mode has no alpha."""
    if image.mode == "F" or image.mode.startswith("I"):
        return _grey(np.asarray(image), key).convert("RGB")
    if image.mode == "La":
        image = image.convert("LA")  # Pillow has no other way from it
    if not image.has_transparency_data:
        return image.convert("RGB")
    if key != image.info.get("transparency"):
        image = image.copy()
        image.info["transparency"] = key
    layer = image.convert("RGBA")
    white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, layer).convert("RGB")


def _grey(values: Any, key: Any) -> Image.Image:
    """Greys of more than 8 bits in 8: of 16 bits, divided by 257."""
    wide = values.astype(np.float64)
    brightest = float(wide.max(initial=0.0, where=np.isfinite(wide)))
    scales = FULL_SCALES if values.dtype.kind == "f" else FULL_SCALES[-1:]
    full = next((scale for scale in scales if brightest <= scale), brightest)
    wide = np.nan_to_num(wide, nan=0.0, posinf=full, neginf=0.0).clip(0.0, full)
    grey = np.rint(wide * (255.0 / full)).astype(np.uint8)
    if key is not None:
        grey[values == key] = 255
    return Image.fromarray(grey)


def _transparent_colour(image: Image.Image) -> Any:
    """The transparent grey or colour in the pixels' own scale: Pillow leaves it in that of the PNG file."""
    key, tiles = image.info.get("transparency"), getattr(image, "tile", ())
    if isinstance(key, tuple) and max(key) > 255:  # RGB of 16 bits, of which Pillow takes the upper 8
        return tuple(value >> 8 for value in key)
    if isinstance(key, int) and tiles and tiles[0][3] in ("L;2", "L;4"):
        return key * (85 if tiles[0][3] == "L;2" else 17)
    return key
