"""Small image files of every kind, made byte by byte where Pillow does not write them."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

ORIENTATIONS = range(1, 9)
CORNERS = {"red": (200, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 200), "grey": (120, 120, 120)}
"""Of `marked`, in reading order."""


def encoded(image: Image.Image, image_format: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, image_format, **options)
    return stream.getvalue()


def marked(width: int = 48, height: int = 32) -> Image.Image:
    """A colour in each quarter; wider than high."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    places = [(slice(y, y + height // 2), slice(x, x + width // 2)) for y in (0, height // 2) for x in (0, width // 2)]
    for place, colour in zip(places, CORNERS.values(), strict=True):
        pixels[place] = colour
    return Image.fromarray(pixels)


def corner_names(image: Image.Image) -> list[str]:
    """Which colours stand in the corners, in reading order."""
    pixels = np.asarray(image.convert("RGB")).astype(int)
    found = [pixels[y, x] for y in (2, -3) for x in (2, -3)]
    return [min(CORNERS, key=lambda name: np.abs(colour - CORNERS[name]).sum()) for colour in found]


def stored_turned(upright: Image.Image, orientation: int) -> Image.Image:
    """What a camera stores so that its tag brings `upright` back."""
    inverse = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    return upright if inverse is None else upright.transpose(inverse)


def exif(orientation: Any) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


def turned_file(orientation: int, image_format: str = "JPEG", upright: Image.Image | None = None) -> bytes:
    """`marked` (or another image) as a camera held sideways or upside down stores it."""
    image = stored_turned(marked() if upright is None else upright, orientation)
    options = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}.get(image_format, {})
    return encoded(image, image_format, exif=exif(orientation), **options)


def chunk(kind: bytes, data: bytes) -> bytes:
    """Of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def raw_png(
    rows: list[bytes], width: int, depth: int, colour_type: int, *, before: bytes = b"", after: bytes = b""
) -> bytes:
    """A PNG file of packed rows, with chunks before and behind its pixels."""
    header = struct.pack(">IIBBBBB", width, len(rows), depth, colour_type, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = (chunk(b"IHDR", header), before, chunk(b"IDAT", pixels), after, chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def short_profile_behind_pixels() -> bytes:
    """A colour profile of two bytes where no decoder looks for one: Pillow fails on it with an IndexError."""
    return raw_png([bytes(9)] * 3, 3, 8, 2, after=chunk(b"iCCP", b"icc\0"))
