from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cclm.data.config import DataConfig, ImageTextDataConfig
from cclm.data.options import ImageTransformConfig
from cclm.data.source import ImageTextSource, Memory, TextPairSource
from cclm.data.tokens import TextTokenizer
from cclm.errors import DataError
from cclm.shardfile.writer import ImageTextShardWriter
from cclm.types import ImageTextRecord, View
from tests.unit.data.data_sets import make_tokenizer, png, save_manifest, write_images


def test_memory_forgets_the_least_recently_used() -> None:
    memory: Memory[str] = Memory(10)
    memory.put("a", "A", 4)
    memory.put("b", "B", 4)
    assert memory.get("a") == "A"
    memory.put("c", "C", 4)
    assert memory.get("b") is None and memory.get("a") == "A" and memory.get("c") == "C" and memory.size == 8
    memory.put("d", "D", 11)
    assert memory.get("d") is None and memory.get("c") == "C"


@pytest.mark.parametrize("cache_bytes", [0, 3000, 1 << 20])
def test_memory_changes_no_sample(config: DataConfig, tokenizer: TextTokenizer, cache_bytes: int) -> None:
    assert config.image_text is not None
    view = replace(config.image_text, transform=replace(config.image_text.transform, cache_bytes=cache_bytes))
    source = ImageTextSource(view, tokenizer, 1)
    walked = [source.sample(step, slot)[0] for step in range(12) for slot in (0, 9)]
    plain = ImageTextSource(replace(view, transform=replace(view.transform, cache_bytes=0)), tokenizer, 1)
    straight = [plain.sample(step, slot)[0] for step in (10, 11) for slot in (0, 9)]
    for first, second in zip(walked[-4:], straight, strict=True):
        assert first.ledger == second.ledger and (first.pixels_CHW == second.pixels_CHW).all()


def test_remembered_groups_change_no_sample(config: DataConfig, tokenizer: TextTokenizer) -> None:
    assert config.text_pair is not None
    plain, keeping = (
        TextPairSource(replace(config.text_pair, cache_groups=groups), tokenizer, 1) for groups in (0, 100)
    )
    for step in range(12):
        first, second = plain.sample(step, 3)[0], keeping.sample(step, 3)[0]
        assert (first.ledger, first.others, first.swapped) == (second.ledger, second.others, second.swapped)


def test_the_views_do_not_share_their_shuffles(config: DataConfig, tokenizer: TextTokenizer) -> None:
    assert config.image_text is not None and config.text_pair is not None
    images, texts = ImageTextSource(config.image_text, tokenizer, 1), TextPairSource(config.text_pair, tokenizer, 1)
    assert images.stream.seed != texts.stream.seed
    assert images.stream.seed == 1


def test_a_text_that_is_empty_for_the_tokenizer_is_replaced(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    # the writer lets "?!" through; the published normalisation leaves nothing of it
    with ImageTextShardWriter(tmp_path, "images") as writer:
        for number, text in enumerate(["?!", "aa", "ab", "ac"]):
            writer.add(
                ImageTextRecord(
                    key=f"k{number}",
                    image=png(number),
                    image_format="png",
                    captions={"en": [text]},
                    source="s",
                    licence="MIT",
                )
            )
        save_manifest(tmp_path, View.IMAGE_TEXT, writer.close())
    view = ImageTextDataConfig(
        shards=(str(tmp_path),),
        batch_size=4,
        negative_group=4,
        matching_rows=4,
        num_lanes=1,
        transform=ImageTransformConfig(size=8),
    )
    source = ImageTextSource(view, TextTokenizer(make_tokenizer(), "cclm"), 0)
    found = [source.sample(0, slot) for slot in range(4)]
    bad = [sample for _, broken in found for sample in broken]
    assert [(sample.key, sample.reason) for sample in bad] == [("k0", "text_empty")]
    assert all(len(sample.ids) == 3 for sample, _ in found)


def small_view(folder: Path) -> ImageTextDataConfig:
    return ImageTextDataConfig(
        shards=(str(folder),), batch_size=4, negative_group=4, matching_rows=4, num_lanes=1, window=4
    )


def test_a_tar_that_cannot_be_opened_is_quarantined_and_the_others_are_read(
    tmp_path: Path, tokenizer: TextTokenizer
) -> None:
    folder = write_images(tmp_path / "set", 8, per_shard=4)
    tar = folder / "images-000001.tar"
    tar.unlink()
    tar.symlink_to(tar)  # an endless link: refused even to root
    view = replace(small_view(folder), window=8, transform=ImageTransformConfig(size=8))
    source = ImageTextSource(view, tokenizer, 0)
    bad = [sample for slot in range(4) for sample in source.sample(0, slot)[1]]
    assert bad
    assert {(sample.reason, sample.shard) for sample in bad} == {("tar_unreadable", "images-000001.tar")}
    assert all("symbolic links" in sample.message for sample in bad)


def test_a_missing_tar_is_told_even_though_it_cannot_be_located(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    folder = write_images(tmp_path / "set", 8)
    (folder / "images-000000.tar").unlink()
    view = small_view(folder)
    with pytest.raises(DataError, match=r"images-000000\.tar: expected a usable sample .* 4 broken ones"):
        ImageTextSource(view, tokenizer, 0).sample(0, 0)
