from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest

from cclm.data.batch import BadSample
from cclm.data.options import ImageTransformConfig
from cclm.data.tokens import TextTokenizer
from cclm.errors import Cause, CclmError, DataError
from cclm.shardfile.reader import Memory
from cclm.types import ImageTextRecord, View
from cclm.views.image_text.options import ImageTextConfig
from cclm.views.image_text.view import ImageTextSource
from tests.shard_writers import ImageShards
from tests.tiny_views import Views, open_dataset, sources
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


def test_the_views_do_not_share_their_shuffles_and_draws(three_views: Views) -> None:
    opened = open_dataset(three_views, seed=1).sources
    assert opened["image_text"].stream.seed == 1
    assert len({source.stream.seed for source in opened.values()}) == 3
    places = [source.generator(source.stream.address(0, 0)).random(4).tolist() for source in opened.values()]
    assert len({tuple(place) for place in places}) == 3


def open_images(folder: Path, tokenizer: TextTokenizer, **changes: object) -> ImageTextSource:
    """Four rows a step of one lane."""
    view = ImageTextConfig(
        sources=sources(folder),
        batch_size=4,
        negative_group=4,
        matching_rows=4,
        num_lanes=1,
        window=4,
        transform=ImageTransformConfig(size=8),
    )
    return ImageTextSource("image_text", replace(view, **changes), tokenizer, 0)  # type: ignore[arg-type]


def test_a_text_that_is_empty_for_the_tokenizer_is_replaced(tmp_path: Path) -> None:
    # the writer lets "?!" through; the published normalisation leaves nothing of it
    with ImageShards(tmp_path, "images") as writer:
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
    source = open_images(tmp_path, TextTokenizer(make_tokenizer(), "cclm"), window=1024)
    found = [source.sample(0, index) for index in range(4)]
    bad = [sample for *_, broken in found for sample in broken]
    assert [(sample.key, sample.reason) for sample in bad] == [("k0", "text_empty")]
    assert all(len(sample.ids) == 3 for _, sample, _ in found)


def test_a_tar_that_cannot_be_opened_is_quarantined_and_the_others_are_read(
    tmp_path: Path, tokenizer: TextTokenizer
) -> None:
    folder = write_images(tmp_path / "set", 8, per_shard=4)
    tar = folder / "images-000001.tar"
    tar.unlink()
    tar.symlink_to(tar)  # an endless link: refused even to root
    source = open_images(folder, tokenizer, window=8)
    bad = [sample for index in range(4) for sample in source.sample(0, index)[2]]
    assert bad
    assert {(sample.reason, sample.shard) for sample in bad} == {("tar_unreadable", "images-000001.tar")}
    assert all("symbolic links" in sample.message for sample in bad)


def test_a_missing_tar_is_told_even_though_it_cannot_be_located(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    folder = write_images(tmp_path / "set", 8)
    (folder / "images-000000.tar").unlink()
    with pytest.raises(DataError) as caught:
        open_images(folder, tokenizer).sample(0, 0)
    assert caught.value.reason == "neighbourhood_broken" and caught.value.where.endswith("images-000000.tar")
    assert "4 broken ones" in caught.value.got


def fail(monkeypatch: pytest.MonkeyPatch, number: int, times: int, name: str = "pread") -> list[int]:
    """Let a system call fail so often; returns the failures that happened."""
    whole, failures = getattr(os, name), list[int]()

    def failing(*arguments: object, **options: object) -> object:
        is_shard = name == "pread" or str(arguments[0]).endswith(".tar")
        if is_shard and len(failures) < times:
            failures.append(number)
            raise OSError(number, os.strerror(number))
        return whole(*arguments, **options)

    monkeypatch.setattr(f"cclm.shardfile.shard.os.{name}", failing)
    monkeypatch.setattr("cclm.run.causes.WAITS_S", (0.0, 0.0, 0.0))
    return failures


@pytest.mark.parametrize("name", ["pread", "open"])
def test_a_disk_that_fails_for_a_moment_costs_no_sample(
    tmp_path: Path, tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder = write_images(tmp_path / "images", 12, per_shard=12)
    expected = [sample.ledger for sample in open_images(folder, tokenizer).samples(0, range(4), [])]
    failures, bad = fail(monkeypatch, errno.ESTALE, 3, name), list[BadSample]()
    found = [sample.ledger for sample in open_images(folder, tokenizer).samples(0, range(4), bad)]
    assert found == expected
    assert not bad and len(failures) == 3


@pytest.mark.parametrize(
    ("number", "cause", "tries"),
    [(errno.EIO, Cause.TRANSIENT, 4), (errno.EMFILE, Cause.USER_ERROR, 1)],
)
def test_a_fault_that_lasts_ends_the_run_and_is_no_bad_sample(
    tmp_path: Path, tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch, number: int, cause: Cause, tries: int
) -> None:
    source = open_images(write_images(tmp_path / "images", 12, per_shard=12), tokenizer)
    failures = fail(monkeypatch, number, 100, "open")
    with pytest.raises(CclmError) as caught:
        source.sample(0, 0)
    assert not isinstance(caught.value, DataError)
    assert caught.value.cause is cause
    assert len(failures) == tries
