"""One image of a corpus, decoded at most once for filters, duplicates and re-encoding (its size is read before)."""

from __future__ import annotations

import io
from functools import cached_property
from typing import Any, Final

from PIL import Image

from cclm.data.decoding import decode_image, image_size
from shards.recipe import ImageSettings

_NAMES: Final = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}


class SourceImage:
    """The bytes of an image file, and what they show: upright, on white, in RGB."""

    def __init__(self, data: bytes, where: str = "") -> None:
        self.data, self._where = data, where

    @cached_property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels (errors: `cclm.data.decoding.image_size`)."""
        return image_size(self.data, self._where)

    @cached_property
    def pixels(self) -> Image.Image:
        """The decoded image (errors: `cclm.data.decoding.decode_image`)."""
        return decode_image(self.data, where=self._where)


def written_anew(image: SourceImage, image_format: str, settings: ImageSettings) -> tuple[bytes, str, float]:
    """Return an image as the recipe wants it stored: the file, its format, and the factor that its sides shrank by.

    What needs no change is returned bit for bit. The same pixels give the same bytes with the same Pillow.
    """
    if not settings.short_side and not settings.format:
        return image.data, image_format, 1.0
    wanted, shorter = settings.format or image_format, min(image.size)
    factor = settings.short_side / shorter if 0 < settings.short_side < shorter else 1.0
    if wanted == image_format and factor == 1.0:
        return image.data, image_format, 1.0
    pixels = image.pixels
    if factor != 1.0:
        width, height = (max(1, round(side * factor)) for side in image.size)
        pixels = pixels.resize((width, height), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    options: dict[str, Any] = {} if wanted == "png" else {"quality": settings.quality}
    pixels.save(out, _NAMES[wanted], **options)
    return out.getvalue(), wanted, factor
