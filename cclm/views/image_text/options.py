"""The settings of the image-text view."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from cclm.views.image_options import ImageViewConfig


@dataclass(frozen=True, kw_only=True)
class ImageTextConfig(ImageViewConfig):
    """Images with captions; a row is an image with one of its captions."""

    captions_per_image: int = 1
    """1, or 2: a second caption in another language joins the contrastive losses (published as `sample_2_captions`)."""

    def find_problems(self, world_size: int, micro_batches: int) -> Iterator[str]:
        """Yield everything that is wrong with these settings, a sentence each."""
        yield from super().find_problems(world_size, micro_batches)
        if self.captions_per_image not in (1, 2):
            yield f"captions_per_image must be 1 or 2, is {self.captions_per_image}"
