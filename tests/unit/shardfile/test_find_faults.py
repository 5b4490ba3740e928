"""Whatever happens to the bytes of a set, verify says so and names the place."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cclm.errors import DataError
from cclm.shardfile.manifest import Manifest
from cclm.shardfile.reader import ShardSet
from cclm.shardfile.verify import find_faults
from cclm.shardfile.writer import ImageTextShardWriter
from cclm.types import View
from tests.unit.shardfile.tiny_sets import PNG_END, image_record, write_image_set, write_text_set

same_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)


def replace_bytes(path: Path, old: bytes, new: bytes) -> None:
    data = path.read_bytes()
    assert data.count(old) == 1 and len(old) == len(new)
    path.write_bytes(data.replace(old, new))


def only_fault(folder: Path) -> DataError:
    faults = list(find_faults(folder))
    assert len(faults) == 1, [str(fault) for fault in faults]
    return faults[0]


def test_sound_sets_have_no_faults(image_set: Path, text_set: Path) -> None:
    seen: list[str] = []
    assert not list(find_faults(image_set, lambda info: seen.append(info.name)))
    assert not list(find_faults(text_set))
    assert seen == ["image-000000.tar", "image-000001.tar"]


def test_a_half_tar(image_set: Path) -> None:
    path = image_set / "image-000001.tar"
    offset = ShardSet(image_set).locate(1, 1).offset
    path.write_bytes(path.read_bytes()[: offset + 600])
    fault = only_fault(image_set)
    assert fault.reason == "tar_truncated"
    assert f"image-000001.tar, offset {offset}, key key-4: expected" in str(fault)
    with pytest.raises(DataError) as caught:
        ShardSet(image_set).image_text(1, 1)
    assert (caught.value.reason, caught.value.where) == (fault.reason, fault.where)


def test_a_picture_cut_inside(image_set: Path) -> None:
    path = image_set / "image-000000.tar"
    picture = b"picture 0" + PNG_END
    replace_bytes(path, picture, picture[:-4] + bytes(4))
    fault = only_fault(image_set)
    assert fault.reason == "image_truncated"
    assert "image-000000.tar, offset 0, key key-0: expected a whole png image" in str(fault)
    with pytest.raises(DataError) as caught:
        ShardSet(image_set).image_text(0, 0)
    assert caught.value.reason == "image_truncated"


def test_a_picture_that_was_cut_before_it_came(tmp_path: Path) -> None:
    folder = write_image_set(tmp_path / "set", num_records=0)
    record = image_record(0)
    object.__setattr__(record, "image", record.image[:-3])
    with ImageTextShardWriter(folder, "image") as writer:
        writer.add(record)
    Manifest(view=View.IMAGE_TEXT, shards=[writer.info]).save(folder)
    assert only_fault(folder).reason == "image_truncated"


def test_broken_json(image_set: Path) -> None:
    replace_bytes(image_set / "image-000000.tar", b'"name 1"', b'"name 1 ')
    fault = only_fault(image_set)
    assert fault.reason == "json_broken"
    assert "key key-1: expected JSON in UTF-8" in str(fault)


def test_changed_bytes_that_still_parse(image_set: Path) -> None:
    replace_bytes(image_set / "image-000000.tar", b'"name 1"', b'"name 7"')
    fault = only_fault(image_set)
    assert fault.reason == "checksum"
    with pytest.raises(DataError) as caught:
        ShardSet(image_set).image_text(0, 1)
    assert caught.value.reason == "checksum"


def test_a_broken_block(text_set: Path) -> None:
    shards = ShardSet(text_set)
    entry = shards.open_shard(0).index.text(0)
    data = bytearray((text_set / "text-000000.tar").read_bytes())
    data[entry.block_offset : entry.block_offset + 4] = b"????"
    (text_set / "text-000000.tar").write_bytes(data)
    fault = only_fault(text_set)
    assert fault.reason == "block_broken"
    assert "offset 0, key text-000000-00000" in str(fault)
    with pytest.raises(DataError) as caught:
        shards.text_group(0, 2)
    assert caught.value.reason == "block_broken"


@pytest.mark.parametrize(
    ("name", "reason"), [("image-000001.tar", "tar_missing"), ("image-000000.index.arrow", "index_missing")]
)
def test_missing_files(image_set: Path, name: str, reason: str) -> None:
    (image_set / name).unlink()
    fault = only_fault(image_set)
    assert (fault.reason, fault.where) == (reason, str(image_set / name))


def endless_link(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)  # whoever opens it is refused, even root


def folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()  # opens, but its bytes cannot be read


@pytest.mark.parametrize("spoil", [endless_link, folder_instead])
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("image-000001.tar", "tar_unreadable"),
        ("image-000000.index.arrow", "index_unreadable"),
        ("manifest.json", "manifest_unreadable"),
    ],
)
def test_files_that_cannot_be_read(image_set: Path, name: str, reason: str, spoil: Any) -> None:
    spoil(image_set / name)
    fault = only_fault(image_set)
    assert fault.reason == reason
    assert str(image_set / name) in fault.where
    assert "symbolic links" in str(fault) or "directory" in str(fault)


def test_a_tar_that_nobody_lists(image_set: Path) -> None:
    shutil.copy(image_set / "image-000000.tar", image_set / "image-000009.tar")
    assert only_fault(image_set).reason == "tar_unlisted"


def test_bytes_after_the_end(image_set: Path) -> None:
    with (image_set / "image-000000.tar").open("ab") as tar:
        tar.write(b"more")
    assert only_fault(image_set).reason == "tar_size"


def change_manifest(folder: Path, **changes: object) -> None:
    path = folder / "manifest.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(document | changes), encoding="utf-8")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"format_version": 2}, "format_version"),
        ({"format": "zip"}, "manifest_broken"),
        ({"view": "audio"}, "manifest_field"),
        ({"shards": [{}]}, "manifest_field"),
        ({"totals": {}}, "totals_wrong"),
    ],
)
def test_a_wrong_manifest(image_set: Path, changes: Any, reason: str) -> None:
    change_manifest(image_set, **changes)
    assert only_fault(image_set).reason == reason


def test_a_manifest_that_was_changed_by_hand(image_set: Path) -> None:
    change_manifest(image_set, command="another")
    assert only_fault(image_set).reason == "manifest_hash"
    with pytest.raises(DataError) as caught:
        Manifest.load(image_set)
    assert caught.value.reason == "manifest_hash"
    path = image_set / "manifest.json"
    Manifest(view=View.IMAGE_TEXT, shards=()).save(image_set)
    path.write_text(path.read_text(encoding="utf-8").replace(" ", "  "), encoding="utf-8")
    assert Manifest.load(image_set).shards == ()
    assert "expected a manifest as it was written, got other bytes" in str(next(iter(find_faults(image_set))))


def test_a_manifest_without_checksum_is_read_but_not_sound(image_set: Path) -> None:
    path = image_set / "manifest.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    del document["checksum"]
    path.write_text(json.dumps(document), encoding="utf-8")
    assert len(Manifest.load(image_set).shards) == 2
    assert only_fault(image_set).reason == "manifest_hash"


def test_no_manifest_and_no_json(image_set: Path) -> None:
    (image_set / "manifest.json").write_bytes(b"{")
    assert only_fault(image_set).reason == "manifest_broken"
    (image_set / "manifest.json").unlink()
    assert "expected a shard set (a folder with manifest.json), got no such file" in str(only_fault(image_set))
    assert only_fault(image_set / "nowhere").reason == "manifest_missing"


def test_wrong_counts(image_set: Path) -> None:
    manifest = Manifest.load(image_set)
    first = manifest.shards[0]
    object.__setattr__(first, "languages", {"en": 6, "ko": 3})
    manifest.save(image_set)
    fault = only_fault(image_set)
    assert fault.reason == "counts_wrong"
    assert "expected languages {'en': 6, 'ko': 3}" in str(fault)


def test_a_set_whose_key_comes_twice(tmp_path: Path) -> None:
    folder = write_image_set(tmp_path / "set", num_records=2, max_samples=1)
    for suffix in (".tar", ".index.arrow"):
        shutil.copy(folder / f"image-000000{suffix}", folder / f"image-000001{suffix}")
    manifest = Manifest.load(folder)
    first, second = manifest.shards
    for name in ("rows", "size_bytes", "sha256", "index_sha256", "languages", "sources", "licences"):
        object.__setattr__(second, name, getattr(first, name))
    manifest.save(folder)
    assert only_fault(folder).reason == "key_twice"


def broken_copy(folder: Path, name: str, data: bytes) -> list[DataError]:
    """Find the faults of `folder` while one of its files has other bytes."""
    path = folder / name
    original = path.read_bytes()
    try:
        path.write_bytes(data)
        return list(find_faults(folder))
    finally:
        path.write_bytes(original)


@pytest.fixture(params=["images", "texts"])
def any_set(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    return (write_image_set if request.param == "images" else write_text_set)(tmp_path / request.param)


@same_folder
@given(data=st.data())
def test_any_changed_byte_is_found_and_its_file_named(any_set: Path, data: Any) -> None:
    name = data.draw(st.sampled_from(sorted(path.name for path in any_set.iterdir())))
    broken = bytearray((any_set / name).read_bytes())
    position = data.draw(st.integers(0, len(broken) - 1))
    broken[position] ^= data.draw(st.integers(1, 255))
    faults = broken_copy(any_set, name, bytes(broken))
    assert faults
    assert all(name in fault.where for fault in faults)


@same_folder
@given(data=st.data())
def test_any_truncation_is_found_and_its_file_named(any_set: Path, data: Any) -> None:
    name = data.draw(st.sampled_from(sorted(path.name for path in any_set.iterdir())))
    whole = (any_set / name).read_bytes()
    faults = broken_copy(any_set, name, whole[: data.draw(st.integers(0, len(whole) - 1))])
    assert faults
    assert all(name in fault.where for fault in faults)


@same_folder
@given(data=st.data())
def test_a_changed_byte_inside_a_member_names_its_key(image_set: Path, data: Any) -> None:
    shards = ShardSet(image_set)
    entry = shards.open_shard(0).index.image(data.draw(st.integers(0, 2)))
    broken = bytearray((image_set / "image-000000.tar").read_bytes())
    position = data.draw(st.integers(entry.offset, entry.json_offset + entry.json_size - 1))
    broken[position] ^= data.draw(st.integers(1, 255))
    faults = broken_copy(image_set, "image-000000.tar", bytes(broken))
    assert len(faults) == 1
    assert f"offset {entry.offset}, key {entry.key}" in faults[0].where
