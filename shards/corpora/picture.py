"""Bytes that claim to be a picture: their format, whether they decode, their size, and boxes in them."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from cclm.shardfile.codec import check_image
from cclm.shardfile.schema import IMAGE_FORMATS
from cclm.types import Region
from shards.corpora.refusal import refuse

LoadImage = Callable[[], bytes]
"""Reads an encoded picture: a `functools.partial` of a plain function. DataError: there is none."""


def image_format_of(image: bytes, where: str) -> str:
    """Return "jpg", "png" or "webp" by the first bytes; names lie, and URLs often have none.

    Raises:
        DataError: reasons image_empty, image_format, image_truncated.
    """
    if not image:
        refuse("image_empty", "a picture", "0 bytes", where)
    if image.startswith(b"\x89PNG"):
        image_format = "png"
    elif image[:4] == b"RIFF" and image[8:12] == b"WEBP":
        image_format = "webp"
    elif image.startswith(b"\xff\xd8\xff"):
        image_format = "jpg"
    else:
        kinds = ", ".join(IMAGE_FORMATS)
        refuse("image_format", f"a picture ({kinds})", f"{len(image)} bytes that begin {image[:8]!r}", where)
    check_image(image, image_format, where)
    return image_format


def image_size(image: bytes, where: str) -> tuple[int, int]:
    """Decode a picture once here, rather than fail on it in every epoch; return its width and height.

    Raises:
        DataError: reason image_broken.
    """
    try:
        with Image.open(io.BytesIO(image)) as picture:
            picture.load()
            width, height = picture.size
            return int(width), int(height)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        refuse("image_broken", "a picture that decodes", str(error), where)


def load_file(path: Path) -> bytes:
    """Read a picture's file (reason image_missing)."""
    with _missing(str(path)):
        return path.read_bytes()


def load_span(path: Path, offset: int, size_bytes: int) -> bytes:
    """Read a picture that lies inside a file, for example in a tar (reasons image_missing, image_truncated)."""
    where = f"{path}@{offset}"
    with _missing(where):
        status = path.stat()
        image = os.pread(_kept_open(path, status.st_ino, status.st_mtime_ns).fileno(), size_bytes, offset)
    if len(image) < size_bytes:
        refuse("image_truncated", f"{size_bytes} bytes", f"{len(image)} before the file ends", where)
    return image


@contextmanager
def _missing(where: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        refuse("image_missing", "a readable file", error.strerror or str(error), where)


@lru_cache(maxsize=16)
def _kept_open(path: Path, inode: int, changed_ns: int) -> BinaryIO:
    """Return an open file (a replaced one has another inode): records that follow each other lie in the same one."""
    return path.open("rb")


def fit_regions(
    regions: list[Region], size: tuple[int, int], annotated_size: tuple[int, int] | None
) -> tuple[list[Region], int]:
    """Scale boxes to the stored picture and clip them to it; return them and how many had no area left.

    Args:
        regions: boxes in pixels of the annotated picture.
        size: width and height of the stored picture.
        annotated_size: of the annotated one; None: the same picture.
    """
    width, height = size
    scale_x = width / annotated_size[0] if annotated_size else 1.0
    scale_y = height / annotated_size[1] if annotated_size else 1.0
    kept = []
    for region in regions:
        x, y, w, h = region.box
        left, right = max(0.0, x * scale_x), min(float(width), (x + w) * scale_x)
        top, bottom = max(0.0, y * scale_y), min(float(height), (y + h) * scale_y)
        # Training crops to whole pixels (the published code casts to int): a box of less than one has nothing to show.
        if right - left >= 1 and bottom - top >= 1:
            kept.append(replace(region, box=(left, top, right - left, bottom - top)))
    return kept, len(regions) - len(kept)
