"""Small images, inside of a page or for one."""

from __future__ import annotations

import base64
import io

from cclm.data.decoding import decode_image

THUMBNAIL_SIZE = 192
"""Pixels of the longer side."""


def thumbnail(image: bytes, size: int = THUMBNAIL_SIZE) -> bytes:
    """Return an image file, made small, as JPEG (errors: `decode_image`)."""
    small = decode_image(image)
    small.thumbnail((size, size))
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=85)
    return buffer.getvalue()


def thumbnail_uri(image: bytes, size: int = THUMBNAIL_SIZE) -> str:
    """Return the same as a data URI."""
    return f"data:image/jpeg;base64,{base64.b64encode(thumbnail(image, size)).decode('ascii')}"
