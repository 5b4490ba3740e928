"""The settings of the image-text view, and of what it shares with every view that has images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from cclm.data.config import ViewConfig
from cclm.data.options import ImageTransformConfig, TeacherConfig
from cclm.model.options import ModelOptions
from cclm.types import Language, Share, View


@dataclass(frozen=True, kw_only=True)
class ImageViewConfig(ViewConfig):
    """What a view is told about its images and their texts, beside what every view is told."""

    languages: tuple[Language, ...] | None = None
    """Languages of texts to use; None: all that a record has."""
    first_caption_probability: Share | None = None
    """Probability of the first text of a language's list, the others sharing the rest; None: all alike."""
    transform: ImageTransformConfig = field(default_factory=ImageTransformConfig)
    """How images are resized, augmented and normalised."""

    record_view: ClassVar[View] = View.IMAGE_TEXT
    trains: ClassVar[frozenset[str]] = frozenset({"vision"})

    def validation_errors(self) -> Iterator[str]:
        """Yield what contradicts itself."""
        yield from super().validation_errors()
        if self.languages is not None and not self.languages:
            yield "languages is empty: name at least one, or leave it out for all"

    def model_errors(self, model: ModelOptions, pad_multiple: int) -> Iterator[str]:
        """Yield in what these settings and the network do not fit."""
        yield from super().model_errors(model, pad_multiple)
        if model.vision.source is None and self.transform.size != model.vision.image_size:
            yield f"transform.size {self.transform.size} is not model.vision.image_size {model.vision.image_size}"


@dataclass(frozen=True, kw_only=True)
class ImageTextConfig(ImageViewConfig):
    """Images with captions; a row is an image with one of its captions."""

    captions_per_image: Literal[1, 2] = 1
    """2: a second caption in another language joins the contrastive losses (published as `sample_2_captions`)."""
    teacher: TeacherConfig | None = None
    """Pull features of captions, and of images that it has, to those of another model; null: none."""
