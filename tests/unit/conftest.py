"""Small real shard sets, a small real tokenizer and small settings of the views, as fixtures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cclm.config import RunConfig
from cclm.costs import step
from cclm.costs.recipe import Counter
from cclm.data.tokens import TextTokenizer
from cclm.forecast import needs
from tests.tiny_views import IMAGE_TEXT, REGIONS, TEXT_PAIR, Views, sources
from tests.unit.data.data_sets import make_tokenizer, write_images, write_pairs, write_region_images
from tests.unit.hub.small_model import opened, tokenizer_folder

__all__ = ["opened", "tokenizer_folder"]
COUNTERS: dict[str, Counter] = {}
"""By network, and which of its parts are frozen."""


@pytest.fixture(autouse=True, scope="module")
def counted_once() -> Iterator[None]:
    """The costs of a network of many tests are counted once: that took more time than the steps of a tiny run."""

    def counter_of(config: RunConfig) -> Counter:
        key = repr((config.model, config.start.freeze))
        return COUNTERS.get(key) or COUNTERS.setdefault(key, Counter(config))

    with pytest.MonkeyPatch.context() as patch:
        for user in (step, needs):
            patch.setattr(user, "Counter", counter_of)
        yield


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


@pytest.fixture(scope="session")
def boxes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images with regions; number 7 has none."""
    return write_region_images(tmp_path_factory.mktemp("boxes"), 40, without=7)


@pytest.fixture
def views(images: Path, more_images: Path, pairs: Path) -> Views:
    """Images of two sources, twice as many of the first; and sentences."""
    return {
        "image_text": replace(IMAGE_TEXT, sources=sources(images, more_images, weights=(2.0, 1.0))),
        "text_pair": replace(TEXT_PAIR, sources=sources(pairs)),
    }


@pytest.fixture
def three_views(views: Views, boxes: Path) -> Views:
    """All of them, in the order of the table."""
    regions = replace(REGIONS, sources=sources(boxes))
    return {"image_text": views["image_text"], "regions": regions, "text_pair": views["text_pair"]}
