"""Step → this rank's batch, in this process or ahead of time in worker processes.

step ──► slots of this rank ──► addresses ──► records ──► samples ──► Batch
         (loader)               (stream)      (source)    (samples)   (collate)
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch.utils.data import DataLoader, Dataset

from cclm.data.batch import BadSample, Batch, ImageTextBatch, PixelScale, RegionBatch, TextPairBatch
from cclm.data.collate import Pictures, collate_image_text, collate_regions, collate_text_pairs
from cclm.data.config import DataConfig, validate
from cclm.data.image import ImageTransformConfig
from cclm.data.schedule import ViewSchedule
from cclm.data.source import ImageTextSource, RegionSource, TextPairSource
from cclm.data.tokens import TextTokenizer
from cclm.errors import CclmError, ConfigError
from cclm.run.causes import cause_of
from cclm.run.stop import STOP_SIGNALS


class StepDataset(Dataset[Batch]):
    """`dataset[step]` is this rank's share of that step: a pure function of (config, tokenizer, seed, step, rank).

    The ranks' shares, put together in rank order, are the same global batch for any number of ranks.

    Args:
        config: what to read, and how.
        tokenizer: of the run (`load_tokenizer(config.tokenizer, config.normalise)`).
        seed: of the run.
        rank: this process, 0 … world_size − 1.
        world_size: number of ranks; at most each view's number of negative groups.

    Raises:
        ConfigError: for a config that contradicts itself, or a source that is too small.
        DataError: for a folder that is no shard set.
    """

    def __init__(
        self, config: DataConfig, tokenizer: TextTokenizer, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        validate(config, world_size)
        assert 0 <= rank < world_size
        self.config, self.tokenizer, self.rank, self.world_size = config, tokenizer, rank, world_size
        images, pairs, regions = config.image_text, config.text_pair, config.regions
        self.schedule = view_schedule(config, seed)
        self.image_text = None if images is None else ImageTextSource(images, tokenizer, seed, config.cache)
        self.text_pair = None if pairs is None else TextPairSource(pairs, tokenizer, seed, config.cache)
        self.regions = None if regions is None else RegionSource(regions, tokenizer, seed, config.cache)

    def __getitem__(self, step: int) -> Batch:
        """Build this rank's batch of a step, all its updates together (`Batch.update` is 0)."""
        bad: list[BadSample] = []
        first, *rest = [self._part(step, part, bad) for part in range(self.config.micro_batches)]
        exposure = tuple(pair for source in self.sources for pair in source.take_exposure())
        return replace(first, rest=tuple(rest), bad_samples=tuple(bad), exposure=exposure)

    def _part(self, step: int, part: int, bad: list[BadSample]) -> Batch:
        """One micro-batch."""
        index = {view: self.schedule.index(view, step) for view in self.schedule.views(step)}
        return Batch(
            step=step,
            image_text=self._image_text(index["image_text"], part, bad) if "image_text" in index else None,
            text_pair=self._text_pair(index["text_pair"], part, bad) if "text_pair" in index else None,
            regions=self._regions(index["regions"], part, bad) if "regions" in index else None,
        )

    @property
    def sources(self) -> list[ImageTextSource | TextPairSource | RegionSource]:
        """Those of the views that there are."""
        return [source for source in (self.image_text, self.text_pair, self.regions) if source is not None]

    @property
    def exposure_keys(self) -> list[str]:
        """Everything that `Batch.exposure` may count, the same on every rank."""
        return [key for source in self.sources for key in source.exposure_keys]

    def refuse_too_many_steps(self, stop_step: int) -> None:
        """Raise ConfigError if the sources' `max_epochs` do not last for so many steps."""
        for source in self.sources:
            wanted = self.schedule.index(source.name, stop_step)
            if source.stream.end_step is not None and wanted > source.stream.end_step:
                raise ConfigError(
                    where=f"data.{source.name}.mix.max_epochs",
                    expected=f"sources that last for {wanted} steps",
                    got=f"sources that are used up after {source.stream.end_step}",
                    do="Shorten the run (optimizer.total_steps), or raise or leave out a max_epochs.",
                )

    def slots(self, batch_size: int, group: int = 1, part: int = 0) -> range:
        """The slots of a micro-batch of the global batch that this rank serves.

        The global batch is cut into equal micro-batches, and each of them into whole groups of `group` slots for the
        ranks, as evenly as they go.
        """
        groups = batch_size // group // self.config.micro_batches
        first, stop = self.rank * groups // self.world_size, (self.rank + 1) * groups // self.world_size
        return range((part * groups + first) * group, (part * groups + stop) * group)

    def _image_text(self, step: int, part: int, bad: list[BadSample]) -> ImageTextBatch:
        assert self.image_text is not None
        samples, slots = [], self.slots(self.image_text.batch_size, self.image_text.config.negative_group, part)
        pictures = Pictures(len(slots))
        self.image_text.announce(step, slots)
        for slot in slots:
            sample, broken = self.image_text.sample(step, slot)
            samples.append(pictures.take(sample))
            bad += broken
        scale = _scale(self.image_text.config.transform)
        return collate_image_text(samples, pictures, self.tokenizer.pad_id, self.config.pad_multiple, scale)

    def _text_pair(self, step: int, part: int, bad: list[BadSample]) -> TextPairBatch:
        assert self.text_pair is not None
        samples, slots = [], self.slots(self.text_pair.batch_size, self.text_pair.config.negative_group, part)
        self.text_pair.announce(step, slots)
        for slot in slots:
            sample, broken = self.text_pair.sample(step, slot)
            samples.append(sample)
            bad += broken
        tlm = self.text_pair.config.tlm
        return collate_text_pairs(samples, self.tokenizer.pad_id, self.config.pad_multiple, tlm=tlm)

    def _regions(self, step: int, part: int, bad: list[BadSample]) -> RegionBatch:
        assert self.regions is not None
        groups, numbers = [], self.slots(self.regions.config.num_groups, 1, part)
        images = self.regions.config.images_per_group
        pictures = Pictures(len(numbers) * images)
        self.regions.announce(step, range(numbers.start * images, numbers.stop * images))
        for number in numbers:
            (found, rows), broken = self.regions.group(step, number)
            groups.append(([pictures.take(sample) for sample in found], rows))
            bad += broken
        scale = _scale(self.regions.config.transform)
        return collate_regions(groups, pictures, self.tokenizer.pad_id, self.config.pad_multiple, scale)


def _scale(transform: ImageTransformConfig) -> PixelScale:
    return PixelScale(mean=transform.mean, std=transform.std)


def view_schedule(config: DataConfig, seed: int) -> ViewSchedule:
    """The order of a configuration's views."""
    views = {name for name in ViewSchedule.ORDER if getattr(config, name) is not None}
    return ViewSchedule(views, config.schedule, config.region_probability, seed)


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
            told: dict[str, Any] = {name: getattr(error, name) for name in names if hasattr(error, name)}
            told["cause"] = cause_of(error)  # what it was raised from stays behind
            return _Failure(type(error), told)


def _unchanged(batch: Any) -> Any:
    return batch
