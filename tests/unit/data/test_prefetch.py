from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import cast

import pytest
import torch

from cclm.data.batch import Batch
from cclm.data.loader import in_background, on_device
from cclm.errors import DataError
from cclm.views.images import ImageBatch
from tests.tiny_views import Views, open_dataset


@pytest.fixture
def batches(views: Views) -> list[Batch]:
    dataset = open_dataset(views)
    return [dataset[step] for step in range(3)]


def images(batch: Batch) -> torch.Tensor:
    return cast(ImageBatch, batch.views["image_text"]).images_BCHW


def test_on_a_cpu_nothing_is_copied_or_read_ahead(batches: list[Batch]) -> None:
    taken: list[int] = []

    def source() -> Iterator[Batch]:
        for batch in batches:
            taken.append(batch.step)
            yield batch

    for batch, moved in on_device(source(), torch.device("cpu")):
        assert taken[-1] == batch.step == moved.step
        assert images(moved).data_ptr() == images(batch).data_ptr()
    assert taken == [0, 1, 2]


def test_every_tensor_of_a_batch_is_reached(batches: list[Batch]) -> None:
    whole = replace(batches[0], rest=(batches[1],))
    reached: list[torch.Tensor] = []
    moved = whole.to("meta")
    moved.each(lambda tensor: reached.append(tensor) or tensor)  # type: ignore[func-returns-value]
    assert {tensor.device.type for tensor in reached} == {"meta"}
    assert len(moved.parts) == 2 and moved.rest[0].step == 1
    assert len(reached) == 2 * (14 + 18), "of image_text and of text_pair, in both micro-batches"
    assert not list(on_device([], torch.device("cpu")))


@pytest.mark.gpu
def test_on_a_gpu_the_copies_are_the_batches(batches: list[Batch]) -> None:
    pinned = [batch.pin_memory() for batch in batches]
    for batch, moved in on_device(pinned, torch.device("cuda", 0)):
        assert images(moved).is_cuda
        assert torch.equal(images(moved).cpu(), images(batch))


def test_batches_are_prepared_in_the_background_in_order() -> None:
    main, prepared = threading.get_ident(), list[tuple[int, bool]]()
    is_prepared = [threading.Event() for _ in range(5)]

    def prepare(batch: Batch) -> Batch:
        prepared.append((batch.step, threading.get_ident() != main))
        is_prepared[batch.step].set()
        return replace(batch, update=7)

    steps = []
    for batch in in_background([Batch(step=step, views={}) for step in range(5)], prepare):
        steps.append((batch.step, batch.update))
        assert is_prepared[min(batch.step + 1, 4)].wait(60), "one is ready before it is wanted"
    assert steps == [(step, 7) for step in range(5)]
    assert prepared == [(step, True) for step in range(5)]


def test_an_error_in_the_background_is_raised_where_the_batch_is_wanted() -> None:
    def source() -> Iterator[Batch]:
        yield Batch(step=0, views={})
        raise DataError(reason="r", expected="a", got="b", do="c", where="d")

    batches = in_background(source(), lambda batch: batch)
    assert next(batches).step == 0
    with pytest.raises(DataError) as caught:
        next(batches)
    assert (caught.value.reason, caught.value.where) == ("r", "d")
