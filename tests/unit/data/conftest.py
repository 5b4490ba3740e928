"""Small real shard sets and a small real tokenizer, as fixtures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cclm.data.config import DataConfig, ImageTextDataConfig, TextPairDataConfig
from cclm.data.options import ImageTransformConfig, MaskingConfig
from cclm.data.tokens import TextTokenizer
from tests.unit.data.data_sets import make_tokenizer, write_images, write_pairs


@pytest.fixture(scope="session")
def tokenizer() -> TextTokenizer:
    return TextTokenizer(make_tokenizer())


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"), 73)


@pytest.fixture(scope="session")
def more_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("more"), 31, first=100)


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs"), 57)


@pytest.fixture
def config(images: Path, more_images: Path, pairs: Path) -> DataConfig:
    transform = ImageTransformConfig(size=8, method="affine", resample="box", cache_bytes=1 << 20)
    return DataConfig(
        tokenizer="",
        image_text=ImageTextDataConfig(
            shards=(str(images), str(more_images)),
            weights=(2.0, 1.0),
            batch_size=16,
            negative_group=4,
            matching_rows=8,
            num_lanes=4,
            window=6,
            first_caption_probability=0.6,
            max_tokens=8,
            transform=transform,
        ),
        text_pair=TextPairDataConfig(
            shards=(str(pairs),),
            batch_size=8,
            pairs_per_sample=3,
            negative_group=2,
            matching_rows=4,
            num_lanes=8,
            window=5,
            max_tokens=8,
            masking=MaskingConfig(max_masks=3),
        ),
    )


@pytest.fixture
def change(config: DataConfig) -> Callable[..., DataConfig]:
    """Make a copy of the config with some settings of one view changed."""

    def changed(view: str, **changes: object) -> DataConfig:
        return replace(config, **{view: replace(getattr(config, view), **changes)})

    return changed
