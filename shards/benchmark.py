"""Test images and sentences of benchmarks, which must not be trained on."""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from cclm.errors import DataError
from cclm.rows.guard import mistaken, without_addresses
from cclm.rows.lines import sound_lines
from shards.corpora.files import named_files
from shards.recipe import IMAGE_SUFFIXES, FilterSettings
from shards.sketch import differing_bits, perceptual_hash
from shards.source_image import SourceImage


def normal_text(text: str) -> str:
    """Return a text without case, punctuation, spacing and the differences of Unicode's compatible characters.

    Combining marks stay: in many scripts they are vowels.
    """
    kept = (c for c in unicodedata.normalize("NFKC", text).casefold() if unicodedata.category(c)[0] in "LMN")
    return "".join(kept)


@lru_cache(maxsize=4)
def read_texts(paths: tuple[str, ...]) -> frozenset[str]:
    """Return the normal form of every line of some files (also compressed). ConfigError: one cannot be read."""
    return frozenset(normal_text(line) for path in paths for line in sound_lines(Path(path))) - {""}


@lru_cache(maxsize=4)
def _read_images(folder: str) -> tuple[list[str], Any]:
    """Return the test images' names, and their hashes (number, 8) as uint8. ConfigError: one does not decode."""
    root = Path(folder)
    paths = named_files(root, IMAGE_SUFFIXES).values()
    try:
        hashes = [perceptual_hash(SourceImage(path.read_bytes(), str(path))) for path in paths]
    except DataError as error:
        do = "Take it out of filters.benchmark_images, or fetch it again."
        mistaken("test images that decode", without_addresses(error.got), do, error.where)
    return [str(path.relative_to(root)) for path in paths], np.frombuffer(b"".join(hashes), np.uint8).reshape(-1, 8)


def read_benchmarks(settings: FilterSettings) -> None:
    """Read all that is to be kept out of a set: a ConfigError ends the build before it begins."""
    read_texts(settings.benchmark_texts)
    if settings.benchmark_images:
        _read_images(settings.benchmark_images)


def like_a_benchmark_image(image: SourceImage, settings: FilterSettings) -> str | None:
    """Return the name of the nearest test image if it is near enough to be the same, or None (reason: image_broken)."""
    assert settings.benchmark_images is not None
    names, hashes = _read_images(settings.benchmark_images)
    distances = differing_bits(hashes, perceptual_hash(image))
    nearest = int(np.argmin(distances))
    if distances[nearest] > settings.benchmark_distance:
        return None
    return f"{names[nearest]} ({distances[nearest]} bits of 64 differ)"
