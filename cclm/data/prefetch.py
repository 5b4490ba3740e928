"""Batches on the device, copied while the step before is computed.

worker ─► pinned memory (a thread) ─► side stream: copy k + 1      (CUDA only; on a CPU the batch is there already)
                                      main stream: step k, then waits for the copy
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from cclm.data.batch import Batch


def on_device(batches: Iterable[Batch], device: torch.device) -> Iterator[tuple[Batch, Batch]]:
    """Yield each batch as it came and its copy on `device`, in order; one batch is copied ahead."""
    if device.type != "cuda":
        for batch in batches:
            yield batch, batch.to(device)
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    ahead: tuple[Batch, Batch] | None = None
    for batch in in_background(batches, Batch.pin_memory):  # the copies of other memory are not asynchronous
        with torch.cuda.stream(stream):
            copied = batch.to(device)
        if ahead is not None:
            yield ahead
        torch.cuda.current_stream(device).wait_stream(stream)
        _used_by(copied, torch.cuda.current_stream(device))
        ahead = batch, copied
    if ahead is not None:
        yield ahead


def in_background(batches: Iterable[Batch], prepare: Callable[[Batch], Batch]) -> Iterator[Batch]:
    """Yield `prepare(batch)` of each batch, prepared in a thread while the one before is used."""
    source, ready = iter(batches), queue.Queue[Batch | BaseException | None](maxsize=1)

    def fill() -> None:
        try:
            for batch in source:
                ready.put(prepare(batch))
            ready.put(None)
        except BaseException as error:  # noqa: BLE001 - it is raised where the batch is waited for
            ready.put(error)

    threading.Thread(target=fill, name="batches", daemon=True).start()
    while (item := ready.get()) is not None:
        if isinstance(item, BaseException):
            raise item
        yield item


def _used_by(batch: Batch, stream: torch.cuda.Stream) -> None:
    """Tell the allocator that memory of the side stream is read by another one, so that it is not reused too soon."""

    def record(tensor: Tensor) -> Tensor:
        tensor.record_stream(stream)
        return tensor

    batch.each(record)
