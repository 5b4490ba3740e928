"""Step → this rank's batch, in this process or ahead of time in worker processes, on the device before it is used.

step ──► indices of this rank ──► addresses ──► records ──► samples ──► Batch
         (loader)               (stream)      (source)    (samples)   (collate)
"""

from __future__ import annotations

import contextlib
import os
import queue
import resource
import threading
from collections.abc import Callable, Container, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from cclm.data.batch import BadSample, Batch
from cclm.data.config import DataConfig, Views, rows_of_rank
from cclm.data.schedule import ViewSchedule
from cclm.data.source import SampleSource, ShownSample
from cclm.data.workers import WorkerPool
from cclm.errors import ConfigError
from cclm.run.machine import available_memory_bytes
from cclm.shardfile.reader import MAX_OPEN_SHARDS

MEMORY_SHARE = 8
"""Batches that are ready may take this part of the machine's free memory, over all its ranks."""

OTHER_FILES, FILES_PER_RANK = 128, 4
"""Besides shards: libraries, checkpoints; connections to the other ranks."""


class StepDataset:
    """`dataset[step]` is this rank's share of that step: a pure function of (config, tokenizer, seed, step, rank).

    The ranks' shares, put together in rank order, are the same global batch for any number of ranks, up to each view's
    number of rows in a micro-batch.
    """

    def __init__(
        self,
        sources: Mapping[str, SampleSource[Any, Any]],
        views: Views,
        config: DataConfig,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        assert 0 <= rank < world_size
        for number in ("stream_bits", "sample_purpose"):
            taken = [getattr(source, number) for source in sources.values()]
            assert len({*taken}) == len(taken), f"views need a {number} of their own: {', '.join(sources)} have {taken}"
        self.sources, self.views, self.config = dict(sources), views, config
        self.rank, self.world_size = rank, world_size
        self.schedule = ViewSchedule(views, config.schedule, seed)
        self._lock = threading.Lock()
        """A thread may read ahead while another looks at a bad step again; shard sets serve one at a time."""

    def __getitem__(self, step: int) -> Batch:
        """Build this rank's batch of a step, all its updates together (`Batch.update` is 0)."""
        bad: list[BadSample] = []
        with self._lock:
            first, *rest = [self._part(step, part, bad) for part in range(self.config.micro_batches)]
            seen = tuple(pair for source in self.sources.values() for pair in source.take_seen())
        return replace(first, rest=tuple(rest), bad_samples=tuple(bad), samples_seen=seen)

    def _part(self, step: int, part: int, bad: list[BadSample]) -> Batch:
        held = self.schedule.views(step)
        return Batch(
            step=step,
            part=part,
            num_parts=self.config.micro_batches,
            views={
                name: source.batch(self.schedule.index(name, step), self.rows(name, part), bad)
                for name, source in self.sources.items()
                if name in held
            },
        )

    def samples_of(self, step: int) -> list[ShownSample]:
        """Return this rank's samples of a step, read again."""
        with self._lock:
            return [
                sample
                for name in self.schedule.views(step)
                for part in range(self.config.micro_batches)
                for sample in self.sources[name].shown(self.schedule.index(name, step), self.rows(name, part))
            ]

    @property
    def counted(self) -> list[str]:
        """Everything that `Batch.samples_seen` may count, the same on every rank."""
        return [key for source in self.sources.values() for key in source.counted]

    def check_steps(self, stop_step: int) -> None:
        """Raise ConfigError if the sources' `max_epochs` do not last for so many steps."""
        for name, source in self.sources.items():
            wanted = self.schedule.index(name, stop_step)
            if source.stream.end_step is not None and wanted > source.stream.end_step:
                raise ConfigError(
                    where=f"views.{name}.sources",
                    expected=f"sources that last for {wanted} steps",
                    got=f"sources that are used up after {source.stream.end_step}",
                    do="Shorten the run (optimizer.total_steps), or raise or leave out a max_epochs.",
                )

    def rows(self, view: str, part: int = 0) -> range:
        """The rows of the global batch that this rank holds in a micro-batch."""
        count = self.views[view].batch_size // self.config.micro_batches
        own = rows_of_rank(count, self.rank, self.world_size)
        return range(part * count + own.start, part * count + own.stop)


def make_loader(
    dataset: StepDataset,
    start_step: int,
    stop_step: int,
    num_workers: int = 0,
    timeout_s: float = 900.0,
    left_out: Container[int] = (),
) -> Iterator[Batch]:
    """Return the batches of steps start_step … stop_step − 1, in order; to begin late costs nothing.

    Workers are forked here, so call it in a thread that lives as long as they are needed: they die with it.

    They are the same for any number of workers. A worker that delivers nothing for `timeout_s` ends the iteration with
    an error. Steps that are `left_out` have no batch.
    """
    sets = [one for source in dataset.sources.values() for one in source.sets]
    shards = sum(min(MAX_OPEN_SHARDS, len(one.samples_per_shard)) for one in sets)
    make_room_for_open_files(OTHER_FILES + FILES_PER_RANK * dataset.world_size + shards)
    steps: Sequence[int] = range(start_step, stop_step)
    if left_out:
        steps = [step for step in steps if step not in left_out]
    if num_workers == 0:
        return map(dataset.__getitem__, steps)
    memory_bytes = available_memory_bytes() // MEMORY_SHARE // int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
    pool = WorkerPool(
        dataset.__getitem__, steps, num_workers=num_workers, timeout_s=timeout_s, memory_bytes=memory_bytes
    )
    return iter(pool)


def on_device(batches: Iterable[Batch], device: torch.device) -> Generator[tuple[Batch, Batch], None, None]:
    """Yield each batch as it came and its copy on `device`, in order; one batch is copied ahead.

    worker ─► pinned memory (a thread) ─► side stream: copy k + 1    (CUDA only; on a CPU the batch is there already)
                                          main stream: step k, then waits for the copy
    """
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
    is_left = threading.Event()

    def fill() -> None:
        try:
            for batch in source:
                ready.put(prepare(batch))
                if is_left.is_set():
                    return
            ready.put(None)
        except BaseException as error:  # noqa: BLE001 - it is raised where the batch is waited for
            ready.put(error)

    threading.Thread(target=fill, name="batches", daemon=True).start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:  # a run that rolls back reads anew: the thread, and with it the workers, must end
        is_left.set()
        with contextlib.suppress(queue.Empty):
            ready.get_nowait()


def _used_by(batch: Batch, stream: torch.cuda.Stream) -> None:
    """Tell the allocator that memory of the side stream is read by another one, so that it is not reused too soon."""

    def record(tensor: Tensor) -> Tensor:
        tensor.record_stream(stream)
        return tensor

    batch.each(record)


def make_room_for_open_files(needed: int) -> None:
    """Raise this process's limit of open files, and its workers', to what is needed (ConfigError: it may not be)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= needed or soft == resource.RLIM_INFINITY:
        return
    if needed > hard != resource.RLIM_INFINITY:
        raise ConfigError(
            where="data",
            expected=f"a limit of at least {needed} open files",
            got=str(hard),
            do=f"Raise it before the start (`ulimit -n {needed}`, or in your system's limits.conf).",
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
