"""The promise to strangers: the plain `webdataset` package reads our tars unchanged."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import webdataset

from cclm.shardfile import codec
from cclm.shardfile.writer import ImageTextShardWriter
from tests.unit.shardfile.tiny_sets import group, image_record


def read_plain(folder: Path) -> Any:
    paths = [str(path) for path in sorted(folder.glob("*.tar"))]
    assert len(paths) == 2
    return list(webdataset.WebDataset(paths, shardshuffle=False))


def test_every_picture_and_json_is_read(image_set: Path) -> None:
    samples = read_plain(image_set)
    assert [sample["__key__"] for sample in samples] == [f"key-{number}" for number in range(5)]
    for number, sample in enumerate(samples):
        record = image_record(number)
        assert sample["png"] == record.image
        document = json.loads(sample["json"])
        assert document["captions"] == record.captions
        assert (document["source"], document["licence"], document["identity"]) == (
            record.source,
            record.licence,
            record.identity,
        )
        assert document["ids"] == record.ids


def test_every_block_is_read(text_set: Path) -> None:
    tables = [pa.ipc.open_file(pa.BufferReader(sample["arrow"])).read_all() for sample in read_plain(text_set)]
    pairs = [pair for table in tables for pair in codec.pairs_of(table)]
    assert pairs == [pair for number in range(8) for pair in group(number)]


def test_tars_are_plain_ustar_and_pax_only_where_a_name_needs_it(tmp_path: Path) -> None:
    long, foreign = "k" * 150, "犬"
    with ImageTextShardWriter(tmp_path, "image") as writer:
        for number, key in enumerate(["plain", long, foreign]):
            writer.add(image_record(number, key))
    data = (tmp_path / "image-000000.tar").read_bytes()
    assert data[257:265] == b"ustar\x0000"
    assert data.count(b"././@PaxHeader") == 4
    with tarfile.open(tmp_path / "image-000000.tar") as tar:
        members = tar.getmembers()
        assert [member.name for member in members[::2]] == ["plain.png", f"{long}.png", f"{foreign}.png"]
        assert {(member.mtime, member.uid, member.gid, member.uname, member.mode) for member in members} == {
            (0, 0, 0, "", 0o644)
        }
    samples = list(webdataset.WebDataset(str(tmp_path / "image-000000.tar"), shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == ["plain", long, foreign]
