"""Step → this rank's batch, in this process or ahead of time in worker processes.

step ──► slots of this rank ──► addresses ──► records ──► samples ──► Batch
         (loader)               (stream)      (source)    (samples)   (collate)
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch.utils.data import DataLoader, Dataset

from cclm.data.batch import BadSample, Batch
from cclm.data.config import DataConfig, Views
from cclm.data.schedule import ViewSchedule
from cclm.data.source import Source
from cclm.errors import CclmError, ConfigError
from cclm.run.stop import STOP_SIGNALS


class StepDataset(Dataset[Batch]):
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

    def __init__(self, loader: DataLoader[Any], num_steps: int) -> None:
        self._loader, self._num_steps = loader, num_steps

    def __len__(self) -> int:
        return self._num_steps

    def __iter__(self) -> Iterator[Batch]:
        for item in self._loader:
            if isinstance(item, _Failure):
                raise item.kind(**item.told)
            yield item


def make_loader(
    dataset: StepDataset, start_step: int, stop_step: int, num_workers: int = 0, pin_memory: bool = False
) -> StepLoader:
    """Iterate over the batches of steps start_step … stop_step − 1, in order.

    Args:
        dataset: this rank's.
        start_step: where to begin, for example the step of a checkpoint; costs the same as 0.
        stop_step: one past the last.
        num_workers: processes that prepare batches ahead; the batches are the same for any number.
        pin_memory: put the tensors into page-locked memory (CUDA only).
    """
    loader: DataLoader[Any] = DataLoader(
        _Guarded(dataset),
        batch_size=None,
        sampler=range(start_step, stop_step),
        num_workers=num_workers,
        collate_fn=_unchanged,
        pin_memory=pin_memory,
        worker_init_fn=_ignore_stop_signals,
        prefetch_factor=4 if num_workers else None,
    )
    return StepLoader(loader, max(0, stop_step - start_step))


def _ignore_stop_signals(worker: int) -> None:
    """A scheduler sends TERM to every process of a job: the rank then saves, and needs its workers until it has."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@dataclass(frozen=True)
class _Failure:
    """A user's error on its way out of a worker: torch would turn it into a RuntimeError with a stack trace inside."""

    kind: type[CclmError]
    told: dict[str, Any]


class _Guarded(Dataset[Any]):
    """Hands errors for users over as values."""

    def __init__(self, dataset: StepDataset) -> None:
        self._dataset = dataset

    def __getitem__(self, step: int) -> Batch | _Failure:
        try:
            return self._dataset[step]
        except CclmError as error:
            names = ("reason", "expected", "got", "do", "where")
            told = {name: getattr(error, name) for name in names if hasattr(error, name)}
            return _Failure(type(error), told)


def _unchanged(batch: Any) -> Any:
    return batch
