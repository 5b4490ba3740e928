"""Epochs of rows: whole batches of a seeded order, the same for any ranks; broken images are replaced in training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cclm.data.batch import BadSample
from cclm.data.loader import StepDataset
from cclm.errors import ConfigError, DataError
from cclm.recipe.epochs import steps_per_epoch, with_epochs
from cclm.views.annotated.classify import ClassifyBatch, ClassifySource
from cclm.views.annotated.rows import Row
from cclm.views.annotated.source import EpochStream
from tests.tiny_finetune import alone, stand_in, write_tokenizer
from tests.tiny_training import as_config, dataset_of


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_tokenizer(tmp_path)
    return stand_in("xvnli", tmp_path / "data")


def drawn(stream: EpochStream, step: int) -> list[tuple[int, int]]:
    addresses = [stream.address(step, index) for index in range(stream.batch_size)]
    return [(address.source, address.sample) for address in addresses]


def test_an_epoch_shows_every_row_once_but_for_the_last_incomplete_batch() -> None:
    stream = EpochStream([5, 6], seed=3, batch_size=4)
    assert stream.steps_per_epoch == 2
    epochs = [drawn(stream, 2 * epoch) + drawn(stream, 2 * epoch + 1) for epoch in range(3)]
    for rows in epochs:
        assert len(set(rows)) == 8
        assert all((0 <= row < (5, 6)[source]) for source, row in rows)
    assert epochs[0] != epochs[1] != epochs[2]
    assert {row for rows in epochs for row in rows} == {(0, row) for row in range(5)} | {(1, row) for row in range(6)}
    assert [drawn(EpochStream([5, 6], seed=3, batch_size=4), 3)] == [drawn(stream, 3)], "a pure function"
    assert drawn(EpochStream([5, 6], seed=4, batch_size=4), 3) != drawn(stream, 3)


def test_a_broken_row_is_replaced_by_the_next_ones_of_the_epoch() -> None:
    stream = EpochStream([3], seed=3, batch_size=1)
    rows = [stream.address(step, 0).sample for step in range(3)]
    for step in range(3):
        address = stream.address(step, 0)
        others = [stream.replacement(address, attempt) for attempt in (1, 2)]
        assert [other.sample for other in others if other] == [rows[(step + 1) % 3], rows[(step + 2) % 3]]
        assert stream.replacement(address, 3) is None


def whole(data: Path, ranks: int, step: int) -> ClassifyBatch:
    """The shares of all ranks."""
    config = as_config(alone(data, data.parent))
    shares = [dataset_of(config, rank, ranks)[step].views["classify"] for rank in range(ranks)]
    parts = [share for share in shares if isinstance(share, ClassifyBatch)]
    fields = {name: torch.cat([getattr(part, name) for part in parts]) for name in ("label_R", "row_R", "ledger_S")}
    images = torch.cat([part.normalised().images for part in parts])
    return ClassifyBatch(**{**vars(parts[0]), **fields, "images_BCHW": images})


@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_ranks_hold_shares_of_one_batch(data: Path, ranks: int) -> None:
    for step in (0, 4):
        alone_, together = whole(data, 1, step), whole(data, ranks, step)
        for name in ("label_R", "row_R", "ledger_S", "images_BCHW"):
            assert torch.equal(getattr(alone_, name), getattr(together, name)), name


def test_epochs_decide_the_steps(data: Path) -> None:
    config = as_config(alone(data, data.parent))
    assert steps_per_epoch(config) == 3  # 18 rows in batches of 6
    assert with_epochs(config).steps == 6
    with pytest.raises(ConfigError) as caught:
        steps_per_epoch(as_config(alone(data, data.parent, batch_size=19)))
    assert caught.value.where == "views.classify.batch_size"


def test_a_broken_image_is_replaced_in_training_and_stops_an_evaluation(data: Path) -> None:
    (data / "flickr30k-images" / "red_box.jpg").write_bytes(b"no image")
    (data / "flickr30k-images" / "blue_circle.jpg").unlink()
    dataset: StepDataset = dataset_of(as_config(alone(data, data.parent)))
    bad: list[BadSample] = []
    for step in range(3):
        batch = dataset[step]
        bad += batch.bad_samples
        assert len(batch.views["classify"].row_R) == 6
    assert {sample.reason for sample in bad} == {"image_broken", "image_missing"}
    assert {(sample.view, sample.shard) for sample in bad} == {("classify", "train.jsonl")}
    source = dataset.sources["classify"]
    assert isinstance(source, ClassifySource)
    broken = [row for row in source.sets[0].rows if row.images == ("red_box.jpg",)]  # type: ignore[attr-defined]
    with pytest.raises(DataError) as caught:
        source.evaluated(broken)
    assert caught.value.reason == "image_broken"
    row = replace(next(row for row in source.sets[0].rows if row.images == ("green_box.jpg",)), text=" ")  # type: ignore[attr-defined]
    with pytest.raises(DataError) as caught:
        source.evaluated([row])
    assert (caught.value.reason, caught.value.where) == ("text_empty", f"row {row.id}")
    for image in (data / "flickr30k-images").iterdir():
        image.unlink()
    with pytest.raises(DataError) as caught:
        dataset_of(as_config(alone(data, data.parent)))[0]
    assert caught.value.reason == "neighbourhood_broken" and "shards" not in caught.value.do


def test_rows_are_looked_at_without_images_by_a_source_that_evaluates_in_its_own_way(data: Path) -> None:
    """As a package's own task may, by the signature that `evaluated` has always had."""

    class Own(ClassifySource):
        def evaluated(self, rows: Sequence[Row], first: int = 0) -> ClassifyBatch:
            seen.append(len(rows))
            return super().evaluated(rows, first)

    seen: list[int] = []
    shared = dataset_of(as_config(alone(data, data.parent))).sources["classify"]
    source = Own(shared.name, shared.config, shared.tokenizer, 0)  # type: ignore[arg-type]
    rows = source.sets[0].rows  # type: ignore[attr-defined]
    (data / "flickr30k-images" / "red_box.jpg").write_bytes(b"no image")
    source.look_at(rows, 4)
    assert sum(seen) == len(rows)
    with pytest.raises(DataError):
        source.evaluated(rows)
