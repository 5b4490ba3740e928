from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from cclm.data.config import DataConfig, validate
from cclm.data.options import ImageTransformConfig, MaskingConfig, MixConfig, MixStage
from cclm.errors import ConfigError


def stage(start_step: int, *weights: float) -> MixStage:
    return MixStage(start_step=start_step, weights=weights)


Change = Callable[..., DataConfig]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_a_good_config_passes(config: DataConfig, world_size: int) -> None:
    validate(config, world_size)


@pytest.mark.parametrize(
    ("view", "changes", "words"),
    [
        ("image_text", {"batch_size": 2}, "batch_size 2 is no multiple of negative_group 4"),
        ("image_text", {"matching_rows": 6}, "matching_rows 6 is no multiple of the 4 negative groups"),
        ("image_text", {"matching_rows": 20}, "or above 16"),
        ("image_text", {"mix": MixConfig(max_epochs=(1,))}, "mix.max_epochs must be one for each of the 2 shards"),
        ("image_text", {"mix": MixConfig(repeats=(1, 0))}, "repeats and max_epochs are positive"),
        ("image_text", {"mix": MixConfig(temperature=0)}, "mix.temperature must be positive"),
        ("image_text", {"mix": MixConfig(schedule=(stage(5, 1, 1), stage(5, 1, 0)))}, "one stage after the other"),
        ("image_text", {"mix": MixConfig(schedule=(stage(5, 0, 0),))}, "weights must be 0 or more, not all 0"),
        ("image_text", {"weights": (1.0,)}, "one for each of the 2 shards"),
        ("image_text", {"weights": (0.0, 0.0)}, "weights must be 0 or more"),
        ("image_text", {"shards": (), "weights": None}, "must name at least one folder"),
        ("image_text", {"window": 0}, "must be at least 1"),
        ("image_text", {"max_tokens": 2}, "max_tokens must be at least 3"),
        ("image_text", {"masking": MaskingConfig(max_masks=0)}, "max_masks at least 1"),
        ("image_text", {"first_caption_probability": 1.5}, "first_caption_probability must be between 0 and 1"),
        ("image_text", {"languages": ()}, "name at least one, or leave it out"),
        ("image_text", {"transform": ImageTransformConfig(crop_area=(0.5, 0.2))}, "0 < low ≤ high ≤ 1"),
        (
            "image_text",
            {"transform": ImageTransformConfig(crop_ratio=(0.0, 1.0))},
            "crop_ratio must obey 0 < low ≤ high",
        ),
        ("image_text", {"transform": ImageTransformConfig(scale=1.0)}, "scale must be below 1"),
        ("image_text", {"transform": ImageTransformConfig(std=(1.0, 0.0, 1.0))}, "size and std must be positive"),
        ("text_pair", {"pairs_per_sample": 0}, "pairs_per_sample must be at least 1"),
        ("text_pair", {"swap_probability": -0.1}, "swap_probability must be between 0 and 1"),
    ],
)
def test_each_contradiction_has_its_sentence(change: Change, view: str, changes: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(change(view, **changes))
    assert words in str(caught.value)


def test_micro_batches_hold_whole_groups(config: DataConfig) -> None:
    validate(replace(config, micro_batches=2), world_size=2)
    for micro_batches, words in ((3, "must divide evenly into 3 micro_batches"), (0, "micro_batches must be at least")):
        with pytest.raises(ConfigError, match=words):
            validate(replace(config, micro_batches=micro_batches))
    with pytest.raises(ConfigError, match="negative group"):
        validate(replace(config, micro_batches=2), world_size=3)


def test_all_complaints_come_at_once(config: DataConfig, change: Change) -> None:
    broken = replace(change("image_text", num_lanes=0), bad_sample_limit=2.0, num_workers=-1)
    with pytest.raises(ConfigError) as caught:
        validate(broken, world_size=8)
    for words in (
        "bad_sample_limit",
        "num_workers",
        "text_pair: each of 8 ranks needs a negative group, the batch has only 4",
        "num_lanes",
    ):
        assert words in str(caught.value)


def test_a_config_without_views_is_refused(config: DataConfig) -> None:
    with pytest.raises(ConfigError, match="none of image_text, text_pair and regions is given"):
        validate(replace(config, image_text=None, text_pair=None))
