"""Small settings of the three views and their data: a test changes what it is about, and opens a dataset in one call.

views = change(tiny_views(images, pairs), "image_text", languages=("de",))
batch = open_dataset(views)[0].views["image_text"]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cclm.data.config import DataConfig, ViewConfig
from cclm.data.loader import StepDataset
from cclm.data.options import ImageTransformConfig, MaskingConfig, SourceConfig
from cclm.data.tokens import TextTokenizer
from cclm.files.node import node_of
from cclm.files.reading import to_plain
from cclm.files.typed import Converter
from cclm.recipe.read import kinds_of
from cclm.views import view
from cclm.views.image_text.options import ImageTextConfig
from cclm.views.regions.options import RegionConfig
from cclm.views.table import VIEWS, Table, make_views
from cclm.views.text_pair.options import TextPairConfig
from tests.unit.data.data_sets import make_tokenizer

Views = dict[str, ViewConfig]

DATA = DataConfig(tokenizer="")
"""The defaults; the tests bring their tokenizer along."""
IMAGE_TEXT = ImageTextConfig(
    sources={},
    batch_size=16,
    negative_group=4,
    matching_rows=8,
    num_lanes=4,
    window=6,
    first_caption_probability=0.6,
    max_tokens=8,
    transform=ImageTransformConfig(size=8, method="affine", resample="box", cache_bytes=1 << 20),
)
REGIONS = RegionConfig(
    sources={},
    batch_size=16,
    negative_group=8,
    images_per_group=5,
    texts_per_image=3,
    matching_rows=8,
    num_lanes=5,
    window=6,
    patch_grid=4,
    max_tokens=8,
    masking=MaskingConfig(max_masks=3),
    transform=ImageTransformConfig(size=16, flip_probability=0.5),
)
TEXT_PAIR = TextPairConfig(
    sources={},
    batch_size=8,
    pairs_per_sample=3,
    negative_group=2,
    matching_rows=4,
    num_lanes=8,
    window=5,
    max_tokens=8,
    masking=MaskingConfig(max_masks=3),
)


def sources(*folders: Path | str, weights: Sequence[float] | None = None, **settings: Any) -> dict[str, SourceConfig]:
    """Return folders by their own names, perhaps with weights; `settings` are for all of them."""
    shares = [None] * len(folders) if weights is None else weights
    return {
        Path(folder).name: SourceConfig(path=str(folder), weight=weight, **settings)
        for folder, weight in zip(folders, shares, strict=True)
    }


def change(views: Mapping[str, ViewConfig], name: str, **changes: Any) -> Views:
    """Return the views with some settings of one of them changed."""
    return {**views, name: replace(views[name], **changes)}


def only(views: Mapping[str, ViewConfig], *names: str) -> Views:
    """Return some of the views."""
    return {name: views[name] for name in names}


def reader_problems(settings: Any) -> list[str]:
    """Return what the reader says about settings, without the file's name."""
    converter = Converter(kinds_of(VIEWS))
    converter.convert(node_of(to_plain(settings), "here"), type(settings))
    return [problem.removeprefix("here: ") for problem in converter.problems]


def open_dataset(
    views: Mapping[str, ViewConfig],
    data: DataConfig = DATA,
    *,
    seed: int = 5,
    rank: int = 0,
    world_size: int = 1,
    table: Table = VIEWS,
) -> StepDataset:
    """Open the data of views for one rank of a test, with its small tokenizer."""
    tokenizer = TextTokenizer(make_tokenizer(), data.normalise)
    return view.open_dataset(make_views(views, table), data, tokenizer, seed, rank, world_size)
