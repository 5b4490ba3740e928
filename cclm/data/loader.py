"""Step → this rank's batch, in this process or ahead of time in worker processes.

step ──► slots of this rank ──► addresses ──► records ──► samples ──► Batch
         (loader)               (stream)      (source)    (samples)   (collate)
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from cclm.data.batch import BadSample, Batch
from cclm.data.config import DataConfig, Views
from cclm.data.schedule import ViewSchedule
from cclm.data.source import Source
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

    The ranks' shares, put together in rank order, are the same global batch for any number of ranks.

    Args:
        sources: the data of each view, by its name.
        views: the views' settings.
        config: what is the same for all of them.
        seed: of the run.
        rank: this process, 0 … world_size − 1.
        world_size: number of ranks; at most each view's number of negative groups.
    """

    def __init__(
        self,
        sources: Mapping[str, Source[Any, Any]],
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

    def __getitem__(self, step: int) -> Batch:
        """Build this rank's batch of a step, all its updates together (`Batch.update` is 0)."""
        bad: list[BadSample] = []
        first, *rest = [self._part(step, part, bad) for part in range(self.config.micro_batches)]
        seen = tuple(pair for source in self.sources.values() for pair in source.take_seen())
        return replace(first, rest=tuple(rest), bad_samples=tuple(bad), samples_seen=seen)

    def _part(self, step: int, part: int, bad: list[BadSample]) -> Batch:
        """One micro-batch."""
        held = self.schedule.views(step)
        return Batch(
            step=step,
            views={
                name: source.batch(self.schedule.index(name, step), self.groups(name, part), bad)
                for name, source in self.sources.items()
                if name in held
            },
        )

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

    def groups(self, view: str, part: int = 0) -> range:
        """The negative groups of a micro-batch of the global batch that this rank serves.

        The global batch is cut into equal micro-batches, and each of them into whole groups for the ranks, as evenly as
        they go.
        """
        count = self.views[view].num_groups // self.config.micro_batches
        first, stop = self.rank * count // self.world_size, (self.rank + 1) * count // self.world_size
        return range(part * count + first, part * count + stop)


class StepLoader:
    """The batches of some steps, in order; made by `make_loader`. Iterating again starts again."""

    def __init__(self, dataset: StepDataset, steps: range, num_workers: int, timeout_s: float) -> None:
        self._dataset, self._steps = dataset, steps
        self._num_workers, self._timeout_s = num_workers, timeout_s

    def __len__(self) -> int:
        return len(self._steps)

    def __iter__(self) -> Iterator[Batch]:
        """Start the workers, if there are to be any."""
        sets = [one for source in self._dataset.sources.values() for one in source.sets]
        shards = sum(min(MAX_OPEN_SHARDS, len(one.samples_per_shard)) for one in sets)
        make_room_for_open_files(OTHER_FILES + FILES_PER_RANK * self._dataset.world_size + shards)
        if self._num_workers == 0:
            return map(self._dataset.__getitem__, self._steps)
        return iter(
            WorkerPool(
                self._dataset.__getitem__,
                self._steps,
                num_workers=self._num_workers,
                timeout_s=self._timeout_s,
                memory_bytes=available_memory_bytes() // MEMORY_SHARE // int(os.environ.get("LOCAL_WORLD_SIZE") or 1),
            )
        )


def make_loader(
    dataset: StepDataset, start_step: int, stop_step: int, num_workers: int = 0, timeout_s: float = 900.0
) -> StepLoader:
    """Iterate over the batches of steps start_step … stop_step − 1, in order.

    Args:
        dataset: this rank's.
        start_step: where to begin, for example the step of a checkpoint; costs the same as 0.
        stop_step: one past the last.
        num_workers: processes that prepare batches ahead; the batches are the same for any number.
        timeout_s: a worker that delivers nothing for so long ends the iteration with an error.
    """
    return StepLoader(dataset, range(start_step, stop_step), num_workers, timeout_s)


def make_room_for_open_files(needed: int) -> None:
    """Raise this process's limit of open files, and its workers', to what is needed.

    Raises:
        ConfigError: the system does not allow it.
    """
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
