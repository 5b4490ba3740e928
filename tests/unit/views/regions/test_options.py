"""What is wrong with the settings of the region view, alone and beside the network."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cclm.data.config import MixConfig, MixStage
from cclm.data.randaugment import RandAugmentConfig
from cclm.model.configuration_cclm import ModelOptions, VisionOptions
from tests.tiny_views import REGIONS, sources

GOOD = replace(REGIONS, sources=sources("boxes"))
AT_LEAST_1 = "images_per_group, texts_per_image and patch_grid are at least 1"
LANGUAGES = "mix: language weights are for captions and translations; use languages"
LATER = MixConfig(schedule=(MixStage(start_step=3, language_weights={"en": 1.0}),))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"images_per_group": 0}, AT_LEAST_1),
        ({"texts_per_image": 0}, AT_LEAST_1),
        ({"patch_grid": 0}, AT_LEAST_1),
        ({"mix": MixConfig(language_weights={"en": 1.0})}, LANGUAGES),
        ({"mix": LATER}, LANGUAGES),
        ({"min_overlap": 1.0}, "min_overlap must be a share below 1, is 1.0"),
        ({"min_overlap": -0.1}, "min_overlap must be a share below 1, is -0.1"),
        ({"step_share": 2.0}, "step_share must be between 0 and 1, is 2.0"),
        ({"step_share": -0.5}, "step_share must be between 0 and 1, is -0.5"),
        (
            {"transform": replace(GOOD.transform, randaugment=RandAugmentConfig(colour_only=False))},
            "transform.randaugment: only with colour_only, or boxes would not fit their image",
        ),
        ({"patch_grid": 5}, "transform.size 16 is no multiple of patch_grid 5"),
    ],
)
def test_each_problem_has_its_sentence(changes: dict[str, Any], words: str) -> None:
    assert list(replace(GOOD, **changes).find_problems(1, 1)) == [words]


def test_what_is_allowed() -> None:
    assert not list(GOOD.find_problems(2, 1))
    coloured = replace(GOOD.transform, randaugment=RandAugmentConfig(colour_only=True))
    assert not list(replace(GOOD, transform=coloured, step_share=1.0, min_overlap=0.0).find_problems(1, 1))


FITS = ModelOptions(vision=VisionOptions(architecture="beit", image_size=16, patch_size=4), box_head=True)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (FITS, []),
        (replace(FITS, box_head=False), ["needs model.box_head: true"]),
        (
            replace(FITS, vision=replace(FITS.vision, patch_size=8)),
            ["patch_grid 4 is not the image tower's grid, 2 on a side"],
        ),
    ],
)
def test_the_network_must_have_boxes_and_the_grid(model: ModelOptions, words: list[str]) -> None:
    assert list(GOOD.find_model_problems(model, 1)) == words


def test_what_it_counts() -> None:
    assert (GOOD.samples_per_step, GOOD.pairs_per_step) == (10, 16), "images are read, texts are contrasted"
    assert GOOD.takes_turns_with == ("image_text", 0.5)
