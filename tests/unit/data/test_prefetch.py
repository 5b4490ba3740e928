from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from cclm.data.batch import Batch
from cclm.data.config import DataConfig
from cclm.data.loader import StepDataset
from cclm.data.prefetch import on_device
from cclm.data.tokens import TextTokenizer


@pytest.fixture
def batches(config: DataConfig, tokenizer: TextTokenizer) -> list[Batch]:
    dataset = StepDataset(config, tokenizer, 5)
    return [dataset[step] for step in range(3)]


def test_on_a_cpu_nothing_is_copied_or_read_ahead(batches: list[Batch]) -> None:
    taken: list[int] = []

    def source() -> Iterator[Batch]:
        for batch in batches:
            taken.append(batch.step)
            yield batch

    for batch, moved in on_device(source(), torch.device("cpu")):
        assert taken[-1] == batch.step == moved.step
        assert batch.image_text is not None and moved.image_text is not None
        assert moved.image_text.images_BCHW.data_ptr() == batch.image_text.images_BCHW.data_ptr()
    assert taken == [0, 1, 2]


def test_every_tensor_of_a_batch_is_reached(batches: list[Batch]) -> None:
    whole = Batch(step=0, image_text=batches[0].image_text, text_pair=None, rest=(batches[1],))
    devices: list[str] = []
    moved = whole.to("meta")
    moved.each(lambda tensor: devices.append(tensor.device.type) or tensor)  # type: ignore[func-returns-value]
    assert set(devices) == {"meta"} and len(moved.parts) == 2 and moved.rest[0].step == 1
    assert not list(on_device([], torch.device("cpu")))


@pytest.mark.gpu
def test_on_a_gpu_the_copies_are_the_batches(batches: list[Batch]) -> None:
    pinned = [batch.pin_memory() for batch in batches]
    for batch, moved in on_device(pinned, torch.device("cuda", 0)):
        assert batch.image_text is not None and moved.image_text is not None
        assert moved.image_text.images_BCHW.is_cuda
        assert torch.equal(moved.image_text.images_BCHW.cpu(), batch.image_text.images_BCHW)
