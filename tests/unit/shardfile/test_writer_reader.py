"""What is written can be addressed; what is half written cannot be seen; the same input gives the same bytes."""

from __future__ import annotations

import contextlib
import itertools
import signal
import subprocess
import sys
from binascii import crc32
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from cclm.errors import DataError
from cclm.shardfile import reader, writer
from cclm.shardfile.codec import encode_block
from cclm.shardfile.manifest import Manifest
from cclm.shardfile.reader import ShardSet
from cclm.shardfile.writer import ImageTextShardWriter, TextPairShardWriter
from cclm.types import TextPair, View
from tests.shard_writers import table_of_pairs
from tests.unit.shardfile.tiny_sets import group, image_record, write_image_set, write_text_set

REPOSITORY = Path(__file__).parents[3]


def test_image_samples_are_addressed(image_set: Path) -> None:
    shards = ShardSet(image_set)
    assert (shards.view, shards.samples_per_shard) == (View.IMAGE_TEXT, [3, 2])
    for number in (4, 0, 2, 3, 1):
        assert shards.image_text(number // 3, number % 3) == image_record(number)
        place = shards.locate(number // 3, number % 3)
        assert (place.tar, place.key) == (f"image-{number // 3:06d}.tar", f"key-{number}")
        with (image_set / place.tar).open("rb") as tar:
            tar.seek(place.offset)
            assert tar.read(100).rstrip(b"\0") == f"key-{number}.png".encode()


def test_text_samples_are_groups(text_set: Path) -> None:
    shards = ShardSet(text_set)
    assert (shards.view, shards.samples_per_shard) == (View.TEXT_PAIR, [5, 3])
    for number in (7, 0, 4, 5, 3):
        assert shards.text_group(number // 5, number % 5) == group(number)
    assert shards.locate(0, 4).key == "g4"


def test_groups_are_never_split_between_blocks(text_set: Path) -> None:
    with pa.memory_map(str(text_set / "text-000000.index.arrow")) as source:
        rows = pa.ipc.open_file(source).read_all().to_pylist()
    assert [(row["row_start"], row["num_rows"]) for row in rows] == [(0, 1), (1, 2), (3, 3), (0, 1), (1, 2)]
    assert [row["key"] for row in rows] == ["text-000000-00000"] * 3 + ["text-000000-00001"] * 2


def test_counts_of_the_manifest(image_set: Path, text_set: Path) -> None:
    images, texts = ShardSet(image_set).manifest.totals, ShardSet(text_set).manifest.totals
    assert (images.samples, images.rows, images.languages) == (5, 15, {"en": 10, "ja": 5})
    assert (images.sources, images.licences) == ({"noto": 3, "twemoji": 2}, {"MIT": 5})
    assert (texts.samples, texts.rows, texts.languages) == (8, 15, {"ar": 2, "de": 8, "en": 8, "zh": 5})
    assert (texts.sources, texts.licences) == ({"names": 8}, {"CC0-1.0": 8})


def test_a_manifest_comes_back_as_it_was(tmp_path: Path) -> None:
    manifest = ShardSet(write_image_set(tmp_path / "set")).manifest
    changed = replace(manifest, config={"recipe": {"α": [1, 2.5, None]}}, command="the command")
    (tmp_path / "copy").mkdir()
    changed.save(tmp_path / "copy")
    assert Manifest.load(tmp_path / "copy") == changed
    assert [shard.index_name for shard in changed.shards] == ["image-000000.index.arrow", "image-000001.index.arrow"]


def test_out_of_range_is_an_index_error(image_set: Path) -> None:
    shards = ShardSet(image_set)
    with pytest.raises(IndexError):
        shards.image_text(0, 3)
    with pytest.raises(IndexError):
        shards.locate(0, -1)


def test_opening_a_set_reads_the_manifest_only(image_set: Path) -> None:
    for path in [*image_set.glob("*.tar"), *image_set.glob("*.arrow")]:
        path.unlink()
    shards = ShardSet(image_set)
    assert shards.samples_per_shard == [3, 2]
    with pytest.raises(DataError) as caught:
        shards.image_text(0, 0)
    assert caught.value.reason == "index_missing"


def test_a_set_can_be_read_again_after_close(image_set: Path) -> None:
    shards = ShardSet(image_set)
    shards.image_text(0, 0)
    shards.close()
    assert shards.image_text(1, 1) == image_record(4)


def opened_by_us() -> list[str]:
    """What this process's descriptors lead to."""
    found = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # the one of the listing itself
            found.append(str(descriptor.readlink()))
    return found


def test_few_files_and_blocks_stay_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MAX_OPEN_SHARDS", 2)
    monkeypatch.setattr(reader, "MAX_CACHED_BLOCKS", 1)
    images = ShardSet(write_image_set(tmp_path / "i", num_records=5, max_samples=1))
    assert [images.image_text(shard, 0).key for shard in (0, 1, 2, 3, 4, 0)] == [f"key-{n}" for n in (0, 1, 2, 3, 4, 0)]
    # Of tars: the descriptor of an index is closed by a thread of pyarrow, which may be a moment late.
    tars = [path for path in opened_by_us() if path.startswith(str(tmp_path)) and path.endswith(".tar")]
    assert len(tars) == 2
    texts = ShardSet(write_text_set(tmp_path / "t"))
    assert [texts.text_group(0, sample)[0].group for sample in (0, 4, 0, 1)] == ["g0", "g4", "g0", "g1"]


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    for write in (write_image_set, write_text_set):
        one, two = write(tmp_path / "one"), write(tmp_path / "two")
        names = sorted(path.name for path in one.iterdir())
        assert names == sorted(path.name for path in two.iterdir())
        assert all((one / name).read_bytes() == (two / name).read_bytes() for name in names)


_WIDE = {"score": pa.float32()}


def test_blocks_end_where_they_are_full_and_never_inside_a_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = [group(number) for number in range(23)]
    blocks: list[list[TextPair]] = [[]]
    for pairs in groups:
        if len(blocks[-1]) >= 6:
            blocks.append([])
        blocks[-1] += pairs
    # As a build has them: a slice of a larger table, in wider columns.
    around = table_of_pairs([*group(90), *itertools.chain.from_iterable(groups), *group(91)])
    wide = around.cast(pa.schema([pa.field(name, _WIDE.get(name, pa.large_string())) for name in around.column_names]))
    checked = []
    monkeypatch.setattr(writer.zlib, "crc32", lambda data: checked.append(data) or crc32(data))
    with TextPairShardWriter(tmp_path, "t", 7, pairs_per_block=6) as texts:
        texts.add_groups(wide.slice(len(group(90)), sum(map(len, groups))))
    assert texts.info is not None and (texts.info.name, texts.info.samples) == ("t-000007.tar", len(groups))
    assert checked == [encode_block(table_of_pairs(pairs)) for pairs in blocks], "a block is summed once"


def test_without_a_sample_there_is_no_shard(tmp_path: Path) -> None:
    with ImageTextShardWriter(tmp_path, "a") as writer:
        pass
    assert writer.info is None and list(tmp_path.iterdir()) == []


def test_a_refused_record_leaves_no_trace(tmp_path: Path) -> None:
    with ImageTextShardWriter(tmp_path, "a") as writer:
        writer.add(image_record(1))
        with pytest.raises(DataError):
            writer.add(image_record(2, key="a.b"))
        writer.add(image_record(3))
    assert writer.info.samples == 2


def test_an_exception_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), ImageTextShardWriter(tmp_path, "a") as writer:
        writer.add(image_record(1))
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_killed_writer_leaves_no_visible_half_shard(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys; from pathlib import Path\n"
        "from tests.unit.shardfile.tiny_sets import image_record\n"
        "from tests.shard_writers import ImageShards\n"
        "writer = ImageShards(Path(sys.argv[1]), 'a', max_samples=2)\n"
        "for number in range(5): writer.add(image_record(number))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    run = subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=REPOSITORY, check=False)
    assert run.returncode == -signal.SIGKILL
    visible = sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith("."))
    assert visible == ["a-000000.index.arrow", "a-000000.tar", "a-000001.index.arrow", "a-000001.tar"]
    write_image_set(tmp_path / "whole", max_samples=2)
    assert (tmp_path / "a-000000.tar").read_bytes() == (tmp_path / "whole" / "image-000000.tar").read_bytes()


def test_a_tar_is_visible_only_after_its_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_self: Path, _target: Path) -> Path:
        raise OSError("no space left")

    writer = ImageTextShardWriter(tmp_path, "a")
    writer.add(image_record(1))
    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="no space left"):
        writer.close()
    assert not list(tmp_path.glob("[!.]*"))
