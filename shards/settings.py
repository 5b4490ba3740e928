"""What a recipe may ask to be done with the records of a set: images re-encoded, filters, duplicates, sampling."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

from cclm.errors import ConfigError
from cclm.types import Bounds, Count, LocalPath, Positive, Share
from shards.corpora.files import named_files

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


Ratio = Annotated[float, Bounds(least=1)]


@dataclass(frozen=True, kw_only=True)
class ImageSettings:
    """How images are stored. All at their defaults: copied bit for bit."""

    short_side: Count = 0
    """Pixels of the shorter side; larger images are scaled down (Lanczos), smaller ones stay. 0: never scaled."""
    format: Literal["", "jpg", "png", "webp"] = ""
    """Every image becomes one; empty: each keeps its own."""
    quality: Annotated[int, Bounds(least=1, most=100)] = 90
    """Of JPEG and WebP that are written anew."""

    @property
    def changes(self) -> bool:
        """Whether an image may be written anew."""
        return self.short_side > 0 or bool(self.format)


@dataclass(frozen=True, kw_only=True)
class FilterSettings:
    """What a record must be like to be kept. At its default, a filter lets everything pass."""

    min_side: Count = 0
    """Pixels of an image's shorter side, as the corpus had it."""
    max_aspect: Ratio | None = None
    """Longer side by shorter side."""
    min_characters: Count = 0
    """Of a caption or sentence, without spaces at its ends."""
    max_characters: Positive | None = None
    """Of a caption or sentence."""
    max_length_ratio: Ratio | None = None
    """Of a pair: characters of the longer sentence by those of the shorter."""
    max_non_letters: Share | None = None
    """Share of characters that are neither letters, marks nor spaces: digits, signs, emoji."""
    min_language_probability: Share | None = None
    """That a text is in its declared language (py3langid); languages that the model does not know are not judged."""
    language_characters: Count = 20
    """Shorter texts are not judged by language: there is too little to go by."""
    min_score: float | None = None
    """Margin score of a pair; pairs without a score pass."""
    blocked_words: LocalPath | None = None
    """File of words and phrases, one a line; a text that has one is refused."""
    benchmark_images: LocalPath | None = None
    """Folder of a benchmark's test images; images that look like one are refused."""
    benchmark_distance: Annotated[int, Bounds(least=0, most=16)] = 4
    """Bits of 64 in which an image's perceptual hash may differ from that of a test image to look like it."""
    benchmark_texts: tuple[LocalPath, ...] = ()
    """Files of a benchmark's test sentences, one a line; texts that are equal (without case, punctuation, spacing) are
    refused."""

    @cached_property
    def are_off(self) -> bool:
        """Whether every record passes: then a million of them need not ask each filter."""
        return self == FilterSettings()

    @property
    def files(self) -> Iterator[Path]:
        """The files that the filters read, in a fixed order.

        Raises:
            ConfigError: one of them does not exist, or a folder holds no image.
        """
        for name in (*([self.blocked_words] if self.blocked_words else []), *self.benchmark_texts):
            yield _existing(Path(name))
        if self.benchmark_images:
            yield from named_files(_existing(Path(self.benchmark_images)), IMAGE_SUFFIXES).values()


def _existing(path: Path) -> Path:
    if not path.exists():
        raise ConfigError(
            expected="a file or folder that a filter names", got="no such", do="Correct the recipe.", where=str(path)
        )
    return path


def content_hash(settings: FilterSettings) -> str:
    """Return a hash of what the filters' files hold: it decides what is built, as the recipe does."""
    digest = hashlib.sha256()
    for path in settings.files:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class DuplicateSettings:
    """Which records count as the same. Of those, the first in the order of the set stays."""

    exact: bool = False
    """The same image bytes; the same two sentences in the same languages (without case and spacing)."""
    near: bool = False
    """Images of a like perceptual hash (imagehash); pairs of like wording (MinHash, rensa)."""
    distance: Annotated[int, Bounds(least=0, most=7)] = 3
    """Bits of 64 in which the hashes of near-duplicate images may differ."""
    similarity: Annotated[float, Bounds(least=0.5, most=1)] = 0.8
    """Jaccard similarity of the character 4-grams of near-duplicate pairs (estimated, standard error about 0.05)."""


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """Fewer records of large languages. A record's label is its languages: "de-en" for a pair, "de+en" for captions."""

    temperature: Ratio = 1.0
    """A label with n records keeps about c · n ** (1 / temperature): 1 keeps proportions, more flattens them."""
    records: Positive | None = None
    """About how many to keep in all, which sets c; None: the largest c at which the smallest label is kept whole."""
