"""Test images and sentences of benchmarks, which must not be trained on."""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from cclm.errors import ConfigError, DataError
from shards.corpora.files import named_files
from shards.corpora.lines import sound_lines
from shards.guard import without_addresses
from shards.settings import IMAGE_SUFFIXES, FilterSettings
from shards.sketch import perceptual_hash
from shards.source_image import SourceImage


def normal_text(text: str) -> str:
    """Return a text without case, punctuation, spacing and the differences of Unicode's compatible characters.

    Combining marks stay: in many scripts they are vowels.
    """
    kept = (c for c in unicodedata.normalize("NFKC", text).casefold() if unicodedata.category(c)[0] in "LMN")
    return "".join(kept)


@lru_cache(maxsize=4)
def read_texts(paths: tuple[str, ...]) -> frozenset[str]:
    """Return the normal form of every line of some files (also compressed).

    Raises:
        ConfigError: one cannot be read.
    """
    return frozenset(normal_text(line) for path in paths for line in sound_lines(Path(path))) - {""}


@lru_cache(maxsize=4)
def _read_images(folder: str) -> tuple[list[str], Any]:
    """Return the test images' names and their hashes, an array (number of images,) of uint64.

    Raises:
        ConfigError: one does not decode.
    """
    root = Path(folder)
    paths = named_files(root, IMAGE_SUFFIXES).values()
    try:
        hashes = [perceptual_hash(SourceImage(path.read_bytes(), str(path))) for path in paths]
    except DataError as error:
        expected, do = "test images that decode", "Take it out of filters.benchmark_images, or fetch it again."
        got = without_addresses(error.got)
        raise ConfigError(expected=expected, got=got, do=do, where=error.where) from error
    return [str(path.relative_to(root)) for path in paths], np.array(hashes, dtype=np.uint64)


def read_benchmarks(settings: FilterSettings) -> None:
    """Read all that is to be kept out of a set: what is wrong with it ends the build before it begins.

    Raises:
        ConfigError: a file cannot be read, an image does not decode.
    """
    read_texts(settings.benchmark_texts)
    if settings.benchmark_images:
        _read_images(settings.benchmark_images)


def like_a_benchmark_image(image: SourceImage, settings: FilterSettings) -> str | None:
    """Return the name of the nearest test image if it is near enough to be the same, or None.

    Raises:
        DataError: reason image_broken.
    """
    assert settings.benchmark_images is not None
    names, hashes = _read_images(settings.benchmark_images)
    distances = differing_bits(hashes, perceptual_hash(image))
    nearest = int(np.argmin(distances))
    if distances[nearest] > settings.benchmark_distance:
        return None
    return f"{names[nearest]} ({distances[nearest]} bits of 64 differ)"


def differing_bits(hashes: Any, one: int) -> Any:
    """Return in how many bits each of an array of uint64 differs from one."""
    different = np.bitwise_xor(hashes, np.uint64(one))
    return np.unpackbits(different.view(np.uint8).reshape(-1, 8), axis=1).sum(axis=1)
