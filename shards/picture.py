"""One picture of a corpus, decoded at most once for filters, duplicates and re-encoding (its size is read before)."""

from __future__ import annotations

import io
from functools import cached_property
from typing import Any, Final

from PIL import Image

from cclm.errors import DataError
from shards.settings import ImageSettings

_NAMES: Final = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}


class Picture:
    """The bytes of a picture file, and what they show.

    Args:
        data: the file.
        where: for error messages.
    """

    def __init__(self, data: bytes, where: str = "") -> None:
        self.data, self._where = data, where

    @cached_property
    def _opened(self) -> Any:
        try:
            return Image.open(io.BytesIO(self.data))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise self._broken(error) from error

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels: from the file's head, nothing is decoded."""
        width, height = self._opened.size
        return int(width), int(height)

    @cached_property
    def pixels(self) -> Any:
        """The decoded PIL image, on white where it is transparent, in RGB.

        Raises:
            DataError: reason image_broken.
        """
        try:
            self._opened.load()
            if self._opened.mode in ("RGBA", "LA", "PA") or "transparency" in self._opened.info:
                drawn = self._opened.convert("RGBA")
                return Image.alpha_composite(Image.new("RGBA", drawn.size, "white"), drawn).convert("RGB")
            return self._opened.convert("RGB")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise self._broken(error) from error

    def _broken(self, error: Exception) -> DataError:
        return DataError(
            reason="image_broken",
            expected="a picture that decodes",
            got=str(error),
            do="Mend the corpus, or leave the picture out.",
            where=self._where,
        )


def written_anew(picture: Picture, image_format: str, settings: ImageSettings) -> tuple[bytes, str, float]:
    """Return a picture as the recipe wants it stored: the file, its format, and the factor that its sides shrank by.

    What needs no change is returned bit for bit. The same pixels give the same bytes with the same Pillow.

    Args:
        picture: the picture.
        image_format: "jpg", "png" or "webp".
        settings: what is wanted.
    """
    if not settings.changes:
        return picture.data, image_format, 1.0
    wanted = settings.format or image_format
    shorter = min(picture.size)
    shrinks = 0 < settings.short_side < shorter
    if wanted == image_format and not shrinks:
        return picture.data, image_format, 1.0
    factor = settings.short_side / shorter if shrinks else 1.0
    pixels = picture.pixels
    if shrinks:
        size = tuple(max(1, round(side * factor)) for side in picture.size)
        pixels = pixels.resize(size, Image.Resampling.LANCZOS)
    out = io.BytesIO()
    options: dict[str, Any] = {} if wanted == "png" else {"quality": settings.quality}
    pixels.save(out, _NAMES[wanted], **options)
    return out.getvalue(), wanted, factor
