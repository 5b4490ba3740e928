from __future__ import annotations

from pathlib import Path

import pytest
import webdataset

from cclm.data.plain_pipeline import plain_pipeline
from cclm.errors import ConfigError, DataError
from cclm.shardfile.reader import ShardSet
from cclm.types import View
from tests.unit.data.data_sets import save_manifest, write_images


def test_images_come_as_the_reader_gives_them(images: Path) -> None:
    stored = ShardSet(images)
    expected = [
        stored.image_text(shard, sample)
        for shard, count in enumerate(stored.samples_per_shard)
        for sample in range(count)
    ]
    assert list(plain_pipeline(images)) == expected


def test_pairs_come_as_the_reader_gives_them(pairs: Path) -> None:
    stored = ShardSet(pairs)
    expected = [
        pair
        for shard, count in enumerate(stored.samples_per_shard)
        for sample in range(count)
        for pair in stored.text_group(shard, sample)
    ]
    assert list(plain_pipeline(pairs)) == expected


def test_shuffling_is_seeded_and_loses_nothing(images: Path) -> None:
    orders = [[record.key for record in plain_pipeline(images, shuffle=30, seed=seed)] for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(record.key for record in plain_pipeline(images)) != orders[0]


def test_a_broken_sample_ends_or_is_left_out_as_told(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "set", 12)
    shard = folder / "images-000000.tar"
    data = shard.read_bytes()
    shard.write_bytes(data.replace(b'"captions"', b"\x00captions\x00", 1))
    with pytest.raises(DataError) as caught:
        list(plain_pipeline(folder))
    assert caught.value.reason == "json_broken"
    assert len(list(plain_pipeline(folder, handler=webdataset.ignore_and_continue))) == 11


def test_an_empty_set_is_refused(tmp_path: Path) -> None:
    save_manifest(tmp_path, View.IMAGE_TEXT, [])
    with pytest.raises(ConfigError, match="expected a set with shards"):
        plain_pipeline(tmp_path)
