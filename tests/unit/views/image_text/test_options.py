"""What is wrong with the settings of the image-text view, and with what all views with images are told."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cclm.data.options import ImageTransformConfig
from cclm.model.options import ModelOptions, VisionOptions
from cclm.views.image_text.options import ImageViewConfig
from tests.tiny_views import IMAGE_TEXT, REGIONS, reader_problems, sources

GOOD = replace(IMAGE_TEXT, sources=sources("images"))


def transform(**changes: Any) -> dict[str, Any]:
    return {"transform": replace(GOOD.transform, **changes)}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"first_caption_probability": 1.5},
            "first_caption_probability: expected a number between 0 and 1 or null, got 1.5",
        ),
        (
            {"first_caption_probability": -0.5},
            "first_caption_probability: expected a number between 0 and 1 or null, got -0.5",
        ),
        ({"languages": ()}, "languages: is empty: name at least one, or leave it out for all"),
        ({"captions_per_image": 3}, "captions_per_image: expected one of 1, 2, got 3"),
        (transform(size=0), "transform.size: expected a whole number of at least 1, got 0"),
        (transform(std=(1.0, 0.0, 1.0)), "transform.std: must be positive, is (1.0, 0.0, 1.0)"),
        (transform(crop_area=(0.5, 0.2)), "transform.crop_area: must obey 0 < low ≤ high ≤ 1, is (0.5, 0.2)"),
        (transform(crop_area=(0.5, 1.2)), "transform.crop_area: must obey 0 < low ≤ high ≤ 1, is (0.5, 1.2)"),
        (transform(crop_area=(0.0, 1.0)), "transform.crop_area: must obey 0 < low ≤ high ≤ 1, is (0.0, 1.0)"),
        (transform(crop_ratio=(0.0, 1.0)), "transform.crop_ratio: must obey 0 < low ≤ high, is (0.0, 1.0)"),
        (transform(crop_ratio=(2.0, 1.0)), "transform.crop_ratio: must obey 0 < low ≤ high, is (2.0, 1.0)"),
        (transform(scale=1.0), "transform.scale: expected a number of at least 0 and below 1, got 1.0"),
        *(
            (transform(**{name: 1.5}), f"transform.{name}: expected a number between 0 and 1, got 1.5")
            for name in ("brightness", "contrast", "saturation", "flip_probability")
        ),
    ],
)
def test_each_problem_has_its_sentence(changes: dict[str, Any], words: str) -> None:
    assert reader_problems(replace(GOOD, **changes)) == [words]


def test_what_is_allowed() -> None:
    assert not (reader_problems(GOOD))
    edges = replace(GOOD, first_caption_probability=1.0, captions_per_image=2, languages=("de",))
    assert not (reader_problems(replace(edges, **transform(flip_probability=1.0, crop_area=(1.0, 1.0)))))


@pytest.mark.parametrize("view", [GOOD, replace(REGIONS, transform=ImageTransformConfig(size=8), patch_grid=4)])
def test_images_must_have_the_size_of_the_network(view: ImageViewConfig) -> None:
    fits = ModelOptions(vision=VisionOptions(image_size=8, patch_size=2), box_head=True)
    larger = replace(fits, vision=replace(fits.vision, image_size=16))
    wanted = "transform.size 8 is not model.vision.image_size 16"
    assert wanted not in list(view.model_errors(fits, 1))
    assert wanted in list(view.model_errors(larger, 1))
