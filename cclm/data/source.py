"""A view's shard sets behind its stream: slot of a step → sample, with broken samples replaced by neighbours."""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Container, Iterator
from functools import partial
from typing import ClassVar, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from cclm.data.batch import BadSample, ViewBatch
from cclm.data.config import ViewConfig
from cclm.data.mix_plan import LanguageMix, RequestedLanguage
from cclm.data.seeding import keyed_generator
from cclm.data.stream import Address, Stream
from cclm.data.tokens import TextTokenizer
from cclm.errors import Cause, CclmError, ConfigError, DataError
from cclm.run.causes import cause_of, retried
from cclm.shardfile.options import CacheConfig, is_remote
from cclm.shardfile.remote import open_set

MAX_REPLACEMENTS = 16
"""How many neighbours of a broken sample are tried; more broken ones in a row are no accident."""

Settings = TypeVar("Settings", bound=ViewConfig)
Sample = TypeVar("Sample")


class Source(ABC, Generic[Settings, Sample]):
    """One view's data: its shard sets, their stream, and the policy for broken samples.

    Args:
        name: of the view.
        config: the view's settings.
        tokenizer, seed: of the run.
        cache: where remote shards are kept; None: the default.
        pad_multiple: texts are padded to a multiple of this length.
        length_buckets: parts of similar text length in which a window is read; more than 1 needs `lengths`.

    Raises:
        ConfigError: a set of another view, an empty one, language weights that no source has.
    """

    stream_bits: ClassVar[int]
    """Flipped in the seed of the view's stream: views must not share their shuffles. No two views have the same."""
    sample_purpose: ClassVar[int]
    """Key of everything that is drawn about a sample (`cclm.data.seeding`). No two views have the same."""

    def __init__(
        self,
        name: str,
        config: Settings,
        tokenizer: TextTokenizer,
        seed: int,
        cache: CacheConfig | None = None,
        pad_multiple: int = 1,
        length_buckets: int = 1,
    ) -> None:
        cache = cache or CacheConfig()
        self.name, self.config = name, config
        self.tokenizer, self.seed, self.pad_multiple = tokenizer, seed, pad_multiple
        sources = config.ordered_sources
        self.paths = [source.path for source in sources.values()]
        self.sets = [open_set(path, cache) for path in self.paths]
        self._ahead = cache.prefetch_steps if any(map(is_remote, self.paths)) else 0
        self._prefetched: dict[int, int] = {}  # by first slot: the steps before this one
        for shard_set in self.sets:
            if shard_set.view is not config.record_view:
                raise ConfigError(
                    expected=f"a shard set of view {config.record_view.value}",
                    got=f"one of view {shard_set.view.value}",
                    do=f"Move it to another view's `sources` (views.{name}.sources names it).",
                    where=str(shard_set.folder),
                )
        self.stream = Stream(
            [shard_set.samples_per_shard for shard_set in self.sets],
            sources,
            seed ^ self.stream_bits,
            config.num_lanes,
            config.window,
            config.samples_per_step,
            config.mix,
            length_buckets,
            self.lengths,
        )
        self.languages = [sorted(shard_set.manifest.totals.languages) for shard_set in self.sets]
        self._languages: LanguageMix | None = None
        if config.mix.has_language_weights:
            languages = dict(zip(sources, self.languages, strict=True))
            self._languages = LanguageMix(config.mix, languages, self.stream.assignment)
        self._names = [f"{name}/{source}" for source in sources]
        self._seen: Counter[str] = Counter()

    @abstractmethod
    def batch(self, step: int, rows: range, bad: list[BadSample]) -> ViewBatch:
        """Build the batch of some rows of the stream's `step`; broken samples are added to `bad`."""

    @abstractmethod
    def make(self, address: Address, fusion: bool) -> Sample:
        """Make a sample of a record; `fusion`: the row goes through the fusion encoder (DataError: it is broken)."""

    def lengths(self, source: int, shards: NDArray[np.int64], samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return a number for each sample that grows with the length of its texts; 0 for broken ones."""
        raise NotImplementedError(f"{type(self).__name__} knows no lengths of texts")

    @property
    def counted(self) -> list[str]:
        """All keys that `take_seen` may count."""
        pairs = zip(self._names, self.languages, strict=True)
        return [*self._names, *(f"{name}/{language}" for name, languages in pairs for language in languages)]

    def take_seen(self) -> list[tuple[str, int]]:
        """What the samples since the last call showed: `cclm.data.counts`."""
        seen = sorted(self._seen.items())
        self._seen.clear()
        return seen

    def generator(self, address: Address) -> np.random.Generator:
        """The generator of everything random about a sample: caption, crop, flip, masks, noise, coins."""
        return keyed_generator(self.seed, self.sample_purpose, 0, (0, address.epoch, address.position))

    def requested(self, address: Address) -> RequestedLanguage | None:
        """The language to show, if languages have weights."""
        if self._languages is None:
            return None
        turn = address.position // self.stream.num_lanes
        return self._languages.requested(address.source, address.lane, turn, address.draw)

    def matching_rows(self, rows: range) -> tuple[frozenset[int], bool]:
        """Which of some rows go through the fusion encoder, and whether they count: a rank that holds none lets its
        first one go, as every rank must run every module."""
        found = frozenset(filter(self.config.is_matching_row, rows))
        return (found, True) if found else (frozenset(rows[:1]), False)

    def prefetch(self, step: int, slots: range) -> None:
        """Let the remote shards of these slots be fetched that will be read some steps after `step`."""
        if not self._ahead:
            return
        stop = step + self._ahead + 1
        if self.stream.end_step is not None:
            stop = min(stop, self.stream.end_step)
        for number in range(max(step, self._prefetched.get(slots.start, 0)), stop):
            for slot in slots:
                address = self.stream.address(number, slot)
                self.sets[address.source].prefetch(address.shard)
        self._prefetched[slots.start] = stop

    def samples(
        self,
        step: int,
        slots: range,
        bad: list[BadSample],
        *,
        matching: Container[int] = (),
        counted: Container[int] | None = None,
    ) -> Iterator[Sample]:
        """Yield the samples of some slots of a step; broken ones that they stand in for are added to `bad`.

        `matching`: those whose rows go through the fusion encoder. `counted`: those that this rank counts; None: all.
        """
        self.prefetch(step, slots)
        for slot in slots:
            address, sample, broken = self.sample(step, slot, slot in matching)
            if counted is None or slot in counted:
                self._count(address, sample)
                bad += broken
            yield sample

    def sample(self, step: int, slot: int, fusion: bool = False) -> tuple[Address, Sample, list[BadSample]]:
        """The sample of a slot, where it stands, and the broken ones that it stands in for.

        Raises:
            DataError: `neighbourhood_broken`, if no replacement can be found near by.
            CclmError: the disk failed, or the process has reached a limit: that says nothing about the sample.
        """
        address = self.stream.address(step, slot)
        bad: list[BadSample] = []
        candidate: Address | None = address
        while candidate is not None and len(bad) <= MAX_REPLACEMENTS:
            try:
                return candidate, retried(partial(self._make, candidate, fusion)), bad
            except DataError as error:
                bad.append(self._describe(candidate, error))
            candidate = self.stream.replacement(address, len(bad))
        raise DataError(
            reason="neighbourhood_broken",
            expected="a usable sample among the neighbours of a broken one",
            got=f"{len(bad)} broken ones, the last: {bad[-1].message}",
            do="`python -m shards verify` on this set names what is damaged: copy these shards again. A set that is "
            "built anew is another run.",
            where=f"{bad[-1].source}/{bad[-1].shard}",
        )

    def _make(self, address: Address, fusion: bool) -> Sample:
        try:
            return self.make(address, fusion)
        except DataError as error:
            if not is_fault(error):
                raise
            self.sets[address.source].forget(address.shard)  # a file server that came back knows no old descriptor
            raise CclmError(
                where=error.where,
                expected=error.expected,
                got=error.got,
                do="Check the storage of the shards on this node, and `ulimit -n`; the same command goes on.",
                cause=cause_of(error),
            ) from error

    def _count(self, address: Address, sample: Sample) -> None:
        """Count a sample that goes into a batch."""
        name = self._names[address.source]
        self._seen[name] += 1
        for language in getattr(sample, "languages", ()):
            self._seen[f"{name}/{language}"] += 1

    def _describe(self, address: Address, error: DataError) -> BadSample:
        shard_set = self.sets[address.source]
        try:
            shard, offset, key = shard_set.locate(address.shard, address.sample)
        except DataError:  # the index itself is broken
            shard, offset, key = shard_set.manifest.shards[address.shard].name, -1, f"#{address.sample}"
        return BadSample(
            view=self.name,
            source=self.paths[address.source],
            shard=shard,
            offset=offset,
            key=key,
            reason=error.reason,
            message=str(error),
        )


def is_fault(error: DataError) -> bool:
    """Return whether a sample could not be used because the system failed, and not because of its file or bytes."""
    reason = error.__cause__ or error.__context__
    is_limit = isinstance(reason, OSError) and reason.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
    return is_limit or cause_of(error) is not Cause.USER_ERROR
