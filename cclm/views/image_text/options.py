"""The settings of the image-text view."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cclm.views.image_options import ImageViewConfig


@dataclass(frozen=True, kw_only=True)
class ImageTextConfig(ImageViewConfig):
    """Images with captions; a row is an image with one of its captions."""

    captions_per_image: Literal[1, 2] = 1
    """2: a second caption in another language joins the contrastive losses (published as `sample_2_captions`)."""
