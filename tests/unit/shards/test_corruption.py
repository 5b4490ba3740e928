"""Whatever byte of whatever file of a built set changes: verify names the file, and no reader returns other records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cclm.errors import DataError
from cclm.shardfile.reader import ShardSet
from cclm.shardfile.verify import find_faults
from cclm.types import View
from shards.build import build_sets
from tests.unit.shards.tiny_corpora import image_plan, text_plan

PLANS = {"images": image_plan(bad=(3, 11)), "texts": text_plan()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("sets")
    build_sets(list(PLANS.values()), folder, command="test")
    return folder


def records_of(folder: Path) -> Any:
    """Every sample by its place: a record, or the reason why it cannot be read."""
    try:
        shards = ShardSet(folder)
    except DataError as error:
        return error.reason
    read = shards.image_text if shards.view is View.IMAGE_TEXT else shards.text_group
    found = {}
    for shard, samples in enumerate(shards.samples_per_shard):
        for sample in range(samples):
            try:
                found[shard, sample] = read(shard, sample)
            except DataError as error:
                found[shard, sample] = error.reason
    shards.close()
    return found


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.parametrize("name", list(PLANS))
def test_any_changed_byte_is_named_and_never_silently_read(folder: Path, name: Any, data: Any) -> None:
    path = data.draw(st.sampled_from(sorted(path for path in (folder / name).iterdir() if path.stat().st_size)))
    whole, sound = path.read_bytes(), records_of(folder / name)
    broken = bytearray(whole)
    broken[data.draw(st.integers(0, len(broken) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        path.write_bytes(broken)
        faults = list(find_faults(folder / name))
        assert faults and all(path.name in fault.where for fault in faults)
        read = records_of(folder / name)
        if not isinstance(read, str):
            assert read.keys() == sound.keys()
            assert all(isinstance(read[place], str) or read[place] == sound[place] for place in sound)
    finally:
        path.write_bytes(whole)


def test_a_quarantine_that_is_gone(folder: Path) -> None:
    path = folder / "images" / "quarantine.jsonl"
    lines = path.read_bytes()
    path.unlink()
    (fault,) = find_faults(folder / "images")
    path.write_bytes(lines)
    assert (fault.reason, fault.where) == ("quarantine_missing", str(path))
    assert not list(find_faults(folder / "images"))
