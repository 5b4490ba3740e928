"""Bytes that claim to be an image: their format, whether they decode, their size, and boxes in them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from cclm.data.decoding import decode_image
from cclm.model.image_rgb import SWAPS_SIDES
from cclm.rows.guard import refuse
from cclm.shardfile.codec import check_image, format_of
from cclm.types import Region

LoadImage = Callable[[], bytes]
"""Reads an encoded image: a `functools.partial` of a plain function. DataError: there is none."""


def image_format_of(image: bytes, where: str) -> str:
    """Return "jpg", "png" or "webp" by the first bytes (reasons image_empty, image_format, image_truncated)."""
    image_format = format_of(image)  # names lie, and URLs often have none
    check_image(image, image_format, where)
    return image_format


def image_size(image: bytes, where: str) -> tuple[int, int]:
    """Return width and height, turned upright (reasons image_broken, image_truncated)."""
    return decode_image(image, where=where).size  # decoded once here, rather than failing in every epoch


def load_first(folders: Sequence[Path], name: str) -> bytes:
    """Read the image of a name from the first folder that has it (reason image_missing)."""
    for folder in folders:
        path = folder / name
        if path.is_file():  # devices and pipes are none: reading them might never end
            with _missing(str(path)):
                return path.read_bytes()
    return refuse("image_missing", f"{name} in {', '.join(map(str, folders))}", "no such file")


def load_span(path: Path, offset: int, size_bytes: int) -> bytes:
    """Read an image that lies inside a file, for example in a tar (reasons image_missing, image_truncated)."""
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
    regions: list[Region], size: tuple[int, int], annotated_size: tuple[int, int] | None, orientation: int = 1
) -> list[Region]:
    """Turn boxes upright, scale them to the stored image, clip them to it; return those that have an area left.

    Boxes are pixels of the file before its EXIF orientation turns it, unless the annotated size is that of the image
    after turning.

    Args:
        regions: boxes in pixels of the annotated image.
        size: width and height of the stored image, upright.
        annotated_size: of the annotated one; None: the same image.
        orientation: of the stored image.
    """
    width, height = size
    frame = (height, width) if orientation in SWAPS_SIDES else size
    if annotated_size and (annotated_size[0] - annotated_size[1]) * (frame[0] - frame[1]) < 0:  # drawn upright
        frame, orientation = size, 1
    scale_x = frame[0] / annotated_size[0] if annotated_size else 1.0
    scale_y = frame[1] / annotated_size[1] if annotated_size else 1.0
    kept = []
    for region in regions:
        x, y, w, h = region.box
        corners = (x * scale_x, y * scale_y, (x + w) * scale_x, (y + h) * scale_y)
        left, top, right, bottom = turn_corners(corners, frame, orientation)
        left, top, right, bottom = max(0.0, left), max(0.0, top), min(float(width), right), min(float(height), bottom)
        # Training crops to whole pixels (the published code casts to int): a box of less than one has nothing to show.
        if right - left >= 1 and bottom - top >= 1:
            kept.append(replace(region, box=(left, top, right - left, bottom - top)))
    return kept


def turn_corners(
    corners: tuple[float, float, float, float], size: tuple[int, int], orientation: int
) -> tuple[float, float, float, float]:
    """Return left, top, right, bottom of a box after its image (width, height) was turned as the EXIF tag says."""
    left, top, right, bottom = corners
    if orientation in (2, 3, 7, 8):
        left, right = size[0] - right, size[0] - left
    if orientation in (3, 4, 6, 7):
        top, bottom = size[1] - bottom, size[1] - top
    return (top, left, bottom, right) if orientation in SWAPS_SIDES else (left, top, right, bottom)
