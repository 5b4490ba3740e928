"""Training data over HTTP: the same batches, fetched ahead, and a server that fails ends the run with its sentence."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch

from cclm.data.config import DataConfig
from cclm.data.loader import make_loader
from cclm.shardfile import cache
from cclm.shardfile.cache import FetchError
from cclm.shardfile.options import CacheConfig
from cclm.views.images import ImageBatch
from tests.tiny_views import DATA, Views, change, only, open_dataset, sources
from tests.unit.shardfile.servers import FolderServer, server

__all__ = ["server"]
pytest.importorskip("aiohttp")


@pytest.fixture
def local(views: Views, images: Path) -> Views:
    return only(change(views, "image_text", sources=sources(images)), "image_text")


@pytest.fixture
def remote(local: Views, images: Path, server: FolderServer) -> Views:
    return change(local, "image_text", sources=sources(f"{server.url}/{images.name}"))


@pytest.fixture
def cached(tmp_path: Path) -> DataConfig:
    return replace(DATA, cache=CacheConfig(folder=str(tmp_path), prefetch_steps=2, attempts=2))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_batches_are_the_local_ones(
    local: Views, remote: Views, cached: DataConfig, server: FolderServer, num_workers: int
) -> None:
    ours = make_loader(open_dataset(remote, cached), 3, 7, num_workers)
    theirs = make_loader(open_dataset(local), 3, 7)
    for first, second in zip(ours, theirs, strict=True):
        there, here = (cast(ImageBatch, batch.views["image_text"]) for batch in (first, second))
        assert torch.equal(there.ledger_S, here.ledger_S)
        assert torch.equal(there.images_BCHW, here.images_BCHW)
    assert max(count for name, count in server.requests.items() if name.endswith(".tar")) == 1


def test_the_shards_of_later_steps_are_fetched_ahead(remote: Views, cached: DataConfig) -> None:
    source = open_dataset(remote, cached).sources["image_text"]
    told: list[int] = []
    source.sets[0].prefetch = told.append  # type: ignore[method-assign]
    source.prefetch(4, range(8))
    assert told == [source.stream.address(step, index).shard for step in (4, 5, 6) for index in range(8)]
    told.clear()
    source.prefetch(5, range(8))
    assert told == [source.stream.address(7, index).shard for index in range(8)]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_server_that_fails_ends_the_run(
    remote: Views, cached: DataConfig, server: FolderServer, monkeypatch: pytest.MonkeyPatch, num_workers: int
) -> None:
    monkeypatch.setattr(cache, "FIRST_PAUSE_S", 0.001)
    dataset = open_dataset(remote, cached)
    server.faults = {f"images-{shard:06d}.tar": ["503"] * 99 for shard in range(8)}
    with pytest.raises(FetchError, match="attempt 2 of 2"):
        list(make_loader(dataset, 0, 2, num_workers))


def test_every_view_fetches_ahead(three_views: Views, cached: DataConfig, server: FolderServer) -> None:
    """Each view's `batch` has to say which shards come next."""
    views = {
        name: replace(
            view, sources=sources(*(f"{server.url}/{Path(source.path).name}" for source in view.sources.values()))
        )
        for name, view in three_views.items()
    }
    dataset = open_dataset(views, cached)
    for name, source in dataset.sources.items():
        told: list[int] = []
        for shard_set in source.sets:
            shard_set.prefetch = told.append  # type: ignore[method-assign]
        source.batch(0, range(1), [])
        assert told, name
