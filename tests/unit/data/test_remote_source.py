"""Training data over HTTP: the same batches, fetched ahead, and a server that fails ends the run with its sentence."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cclm.data.config import DataConfig
from cclm.data.loader import StepDataset, make_loader
from cclm.data.tokens import TextTokenizer
from cclm.errors import ConfigError
from cclm.shardfile import fetch
from cclm.shardfile.cache import CacheConfig
from cclm.shardfile.fetch import FetchError
from tests.unit.shardfile.servers import FolderServer

pytest.importorskip("aiohttp")


@pytest.fixture
def server(images: Path) -> Iterator[FolderServer]:
    server = FolderServer(images.parent)
    yield server
    server.close()


@pytest.fixture
def local(config: DataConfig, images: Path) -> DataConfig:
    assert config.image_text is not None
    return replace(config, text_pair=None, image_text=replace(config.image_text, shards=(str(images),), weights=None))


@pytest.fixture
def remote(local: DataConfig, images: Path, server: FolderServer, tmp_path: Path) -> DataConfig:
    assert local.image_text is not None
    return replace(
        local,
        image_text=replace(local.image_text, shards=(f"{server.url}/{images.name}",)),
        cache=CacheConfig(folder=str(tmp_path), prefetch_steps=2, attempts=2),
    )


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_batches_are_the_local_ones(
    local: DataConfig, remote: DataConfig, tokenizer: TextTokenizer, server: FolderServer, num_workers: int
) -> None:
    ours = make_loader(StepDataset(remote, tokenizer, 5), 3, 7, num_workers)
    theirs = make_loader(StepDataset(local, tokenizer, 5), 3, 7)
    for first, second in zip(ours, theirs, strict=True):
        assert first.image_text is not None and second.image_text is not None
        assert torch.equal(first.image_text.ledger_B, second.image_text.ledger_B)
        assert torch.equal(first.image_text.images_BCHW, second.image_text.images_BCHW)
    assert max(count for name, count in server.requests.items() if name.endswith(".tar")) == 1


def test_the_shards_of_later_steps_are_announced(remote: DataConfig, tokenizer: TextTokenizer) -> None:
    source = StepDataset(remote, tokenizer, 5).image_text
    assert source is not None
    told: list[int] = []
    source.sets[0].prefetch = told.append  # type: ignore[method-assign]
    source.announce(4, range(8))
    assert told == [source.stream.address(step, slot).shard for step in (4, 5, 6) for slot in range(8)]
    told.clear()
    source.announce(5, range(8))
    assert told == [source.stream.address(7, slot).shard for slot in range(8)]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_server_that_fails_ends_the_run(
    remote: DataConfig,
    tokenizer: TextTokenizer,
    server: FolderServer,
    monkeypatch: pytest.MonkeyPatch,
    num_workers: int,
) -> None:
    monkeypatch.setattr(fetch, "FIRST_PAUSE_S", 0.001)
    dataset = StepDataset(remote, tokenizer, 5)
    server.faults = {f"images-{shard:06d}.tar": ["503"] * 99 for shard in range(8)}
    with pytest.raises(FetchError, match="attempt 2 of 2"):
        list(make_loader(dataset, 0, 2, num_workers))


def test_a_cache_that_cannot_be_is_refused(remote: DataConfig, tokenizer: TextTokenizer) -> None:
    with pytest.raises(ConfigError, match="cache: size_bytes and attempts must"):
        StepDataset(replace(remote, cache=CacheConfig(attempts=0)), tokenizer, 5)
