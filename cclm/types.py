"""The words that everything else uses. No torch, no files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Annotated, Literal

LANGUAGE = "a language"
Language = Annotated[str, LANGUAGE]
"""A BCP-47 language tag, for example "en" or "zh-Hant"."""

PathText = Annotated[str, "a path"]
"""A file or folder (or a URL, or a name on a hub) in a configuration: `~` and `$VARIABLE` are expanded on reading."""
LOCAL = "of this machine"
LocalPath = Annotated[PathText, LOCAL]
"""One that is no URL: taken for a path, it would be written to a folder named "s3:"."""

TEXT_OR_NOTHING = "a text or nothing"
TextOrNothing = Annotated[str, TEXT_OR_NOTHING]
"""In a configuration: a key without a value is an empty text."""


@dataclass(frozen=True)
class Bounds:
    """What a number in a configuration may be: `Annotated[int, Bounds(least=1)]`."""

    least: float | None = None
    most: float | None = None
    above: float | None = None
    """It is larger than this."""
    below: float | None = None
    """It is smaller than this."""

    def hold(self, value: float) -> bool:
        """Return whether a number lies within."""
        return (
            (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        words = {"of at least": self.least, "above": self.above, "of at most": self.most, "below": self.below}
        if None not in (self.least, self.most):
            return f"between {self.least:g} and {self.most:g}"
        return " and ".join(f"{word} {value:g}" for word, value in words.items() if value is not None)


Precision = Literal["fp32", "bf16", "fp16"]
"""What a network is computed in; master weights and moments are fp32."""
Count = Annotated[int, Bounds(least=0)]
Positive = Annotated[int, Bounds(least=1)]
MOST_STEPS, MOST_ROWS = 10**12, 10**6
"""Of a run, and of a step: samples are numbered in 64 bits."""
MOST_EPOCHS = 10**6
Rows = Annotated[int, Bounds(least=1, most=MOST_ROWS)]
NotNegative = Annotated[float, Bounds(least=0)]
Share = Annotated[float, Bounds(least=0, most=1)]
Protocol = Literal[
    "zero-shot",
    "few-shot",
    "translate-test",
    "translate-train",
    "single-language",
    "all-language",
    "no-fine-tuning",
]
"""What the training and test data of a result are."""


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
