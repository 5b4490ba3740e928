"""Bytes of an image file → RGB pixels, upright and on white (`cclm.model.image_rgb`), or a `DataError` with its reason.

    bytes ─ header ─▶ image_size          width and height as people see them
          ─ Pillow ─▶ decode_image        a PIL image; JPEGs at 1/2, 1/4 or 1/8 of their size, if wanted
          ─ simplejpeg ─▶ decode_scaled   the same as an array, in two thirds of the time where it is installed

Whatever a decoder raises is a `DataError` here: one broken file never ends a build, a download or a run. No torch.
"""

from __future__ import annotations

import io
import math
import re
from contextlib import suppress
from functools import lru_cache
from importlib import import_module
from types import ModuleType

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from cclm.errors import DataError
from cclm.model.image_rgb import SWAPS_SIDES, TURNS, orientation_of, to_rgb
from cclm.shardfile.codec import first_scan, format_of, is_cut

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""Pillow's decoders that are tried, in this order: never those that start other programs (EPS)."""
JPEG_START = b"\xff\xd8"
SIGNS_OF_A_TAG = {
    "jpg": (b"Exif\0\0", b"tiff:Orientation"),
    "png": (b"eXIf", b"type exif", b"adobe.xmp"),
    "webp": (b"EXIF", b"tiff:Orientation"),
}
"""One of these stands in every file that has an orientation. To search for them takes microseconds; to ask Pillow may
mean to decode a whole PNG."""


def decode_image(data: bytes, scale: int = 1, where: str = "") -> Image.Image:
    """Decode an image file to RGB: turned upright, transparent parts white, of an animation the first frame.

    Bytes behind the file's end do not matter. A JPEG is decoded at 1/`scale` (1, 2, 4 or 8) of its size, rounded up;
    other formats come whole.

    Raises:
        DataError: `image_truncated` if the file ends too early, `image_broken` for anything else wrong with it.
    """
    if data.startswith(JPEG_START) and is_cut(data):  # filled up with zeros, it would decode to half an image
        raise _refusal(data, "no end", where)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if scale > 1:
                image.draft("RGB", (max(1, image.width // scale), max(1, image.height // scale)))
            return to_rgb(image)
    except Exception as error:
        raise _refusal(data, _words(error), where) from error


def image_size(data: bytes, where: str = "") -> tuple[int, int]:
    """Return width and height of the upright image, from the file's head where that is enough (see `decode_image`)."""
    try:
        width, height = _stored_size(data)
    except Exception as error:
        raise _refusal(data, _words(error), where) from error
    return (height, width) if stored_orientation(data) in SWAPS_SIDES else (width, height)


def _stored_size(data: bytes) -> tuple[int, int]:
    fast = _simplejpeg()
    if fast is not None and data.startswith(JPEG_START):
        with suppress(ValueError):  # then Pillow names what is wrong, or is more patient
            height, width, _, _ = fast.decode_jpeg_header(data)
            return int(width), int(height)
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        return image.width, image.height


def stored_orientation(data: bytes) -> int:
    """Return the EXIF orientation of a JPEG, PNG or WebP file, 1 to 8; 1 where there is none, or none to be read."""
    image_format = format_of(data)
    end = first_scan(data) if image_format == "jpg" else len(data)
    if any(data.find(sign, 0, end) >= 0 for sign in SIGNS_OF_A_TAG.get(image_format, ())):
        with suppress(Exception), Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return orientation_of(image)
    return 1


def decode_scaled(data: bytes, scale: int) -> NDArray[np.uint8]:
    """Decode at 1/scale of the size: (height, width, 3), as `decode_image` does, errors included."""
    fast = _simplejpeg()
    if fast is not None and data.startswith(JPEG_START):
        with suppress(ValueError):  # then Pillow names what is wrong, or is more patient
            height, width, colours, _ = fast.decode_jpeg_header(data)
            if colours not in ("CMYK", "YCCK") and height * width <= 2 * (Image.MAX_IMAGE_PIXELS or math.inf):
                least = {"min_height": math.ceil(height / scale), "min_width": math.ceil(width / scale)}
                pixels: NDArray[np.uint8] = fast.decode_jpeg(data, "RGB", **least, min_factor=1)
                turn = TURNS.get(stored_orientation(data))
                return pixels if turn is None else np.asarray(Image.fromarray(pixels).transpose(turn))
    return decode_scaled_plain(data, scale)


def decode_scaled_plain(data: bytes, scale: int) -> NDArray[np.uint8]:
    """The twin of `decode_scaled` that needs only Pillow."""
    return np.asarray(decode_image(data, scale))


def _words(error: Exception) -> str:
    """What the decoder says, without addresses in memory: messages are compared, and kept in files."""
    if isinstance(error, UnidentifiedImageError):
        return "no known image format"
    words = re.sub(r" at 0x[0-9a-fA-F]+", "", " ".join(str(error).split()))
    is_telling = isinstance(error, OSError | ValueError | SyntaxError) and words
    return words if is_telling else f"{type(error).__name__} {words}"


def _refusal(data: bytes, words: str, where: str) -> DataError:
    return DataError(
        reason="image_truncated" if is_cut(data) else "image_broken",
        expected="a complete image file (JPEG, PNG, WebP, …)",
        got=f"{len(data)} bytes that do not decode ({words})",
        do="Fetch the image again, or leave it out.",
        where=where,
    )


@lru_cache(maxsize=1)
def _simplejpeg() -> ModuleType | None:
    with suppress(ImportError):
        return import_module("simplejpeg")
    return None
