"""The settings that the views with images share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from cclm.data.config import ViewConfig
from cclm.data.image import ImageTransformConfig
from cclm.model.configuration_cclm import ModelOptions
from cclm.types import View


@dataclass(frozen=True, kw_only=True)
class ImageViewConfig(ViewConfig):
    """What a view is told about its images and their texts, beside what every view is told."""

    languages: tuple[str, ...] | None = None
    """Languages of texts to use; None: all that a record has."""
    first_caption_probability: float | None = None
    """Probability of the first text of a language's list, the others sharing the rest; None: all alike."""
    transform: ImageTransformConfig = field(default_factory=ImageTransformConfig)
    """How images are resized, augmented and normalised."""

    record_view: ClassVar[View] = View.IMAGE_TEXT
    trains: ClassVar[frozenset[str]] = frozenset({"vision"})

    def find_problems(self, world_size: int, micro_batches: int) -> Iterator[str]:
        """Yield everything that is wrong with these settings, a sentence each."""
        yield from super().find_problems(world_size, micro_batches)
        first, transform = self.first_caption_probability, self.transform
        if first is not None and not 0 <= first <= 1:
            yield f"first_caption_probability must be between 0 and 1, is {first}"
        if self.languages is not None and not self.languages:
            yield "languages is empty: name at least one, or leave it out for all"
        if transform.size < 1 or min(transform.std) <= 0:
            yield f"transform: size and std must be positive, are {transform.size} and {transform.std}"
        if not 0 < transform.crop_area[0] <= transform.crop_area[1] <= 1:
            yield f"transform.crop_area must obey 0 < low ≤ high ≤ 1, is {transform.crop_area}"
        if not 0 < transform.crop_ratio[0] <= transform.crop_ratio[1]:
            yield f"transform.crop_ratio must obey 0 < low ≤ high, is {transform.crop_ratio}"
        shares = (transform.brightness, transform.contrast, transform.saturation, transform.flip_probability)
        if not 0 <= transform.scale < 1 or not all(0 <= share <= 1 for share in shares):
            yield "transform: scale must be below 1; brightness, contrast, saturation, flip_probability in 0 … 1"

    def find_model_problems(self, model: ModelOptions, pad_multiple: int) -> Iterator[str]:
        """Yield everything in which these settings and the network do not fit, a sentence each."""
        yield from super().find_model_problems(model, pad_multiple)
        if self.transform.size != model.vision.image_size:
            yield f"transform.size {self.transform.size} is not model.vision.image_size {model.vision.image_size}"
