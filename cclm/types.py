"""The words that everything else uses. No torch, no files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

Language = str
"""A BCP-47 language tag, for example "en" or "zh-Hant"."""


class View(str, Enum):
    """The two kinds of paired views that CCLM trains on."""

    IMAGE_TEXT = "image_text"
    TEXT_PAIR = "text_pair"


@dataclass(frozen=True, kw_only=True)
class Region:
    """A box of an image and what it shows."""

    box: tuple[float, float, float, float]
    """x, y, width, height in pixels of the upright image, origin at the top left."""
    captions: Mapping[Language, Sequence[str]]
    """Texts by language."""
    attributes: Mapping[Language, Sequence[str]] = field(default_factory=dict)
    """What the thing is like ("red", "wooden"), by language; may be said before a caption. Empty: unknown."""


@dataclass(frozen=True, kw_only=True)
class ImageTextRecord:
    """One image with its captions."""

    key: str
    """Unique inside a shard set; letters, digits, `_` and `-` only (a dot would end a WebDataset key)."""
    image: bytes
    """The encoded image file, unchanged."""
    image_format: str
    """"jpg", "png" or "webp": the member's extension."""
    captions: Mapping[Language, Sequence[str]]
    """Captions by language, each a non-empty list."""
    source: str
    """Name of the corpus or artist."""
    licence: str
    """SPDX tag of the image's licence."""
    identity: str = ""
    """Records with the same identity show the same thing and are never each other's negatives; empty: the key."""
    ids: Mapping[str, str] = field(default_factory=dict)
    """Identifiers in the source corpus."""
    regions: Sequence[Region] = ()
    """Optional boxes."""


@dataclass(frozen=True, kw_only=True)
class TextPair:
    """A sentence and its translation."""

    text_a: str
    lang_a: Language
    text_b: str
    lang_b: Language
    source: str
    """Name of the corpus."""
    group: str
    """Pairs with the same group share the sentence `text_a`; they are stored side by side and are never negatives."""
    score: float | None = None
    """Margin or quality score of the source corpus, if it has one."""
