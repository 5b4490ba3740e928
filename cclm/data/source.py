"""A view's data behind its stream: index of a step → sample, with broken samples replaced by neighbours."""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from cclm.data.batch import BadSample, Taught, ViewBatch
from cclm.data.config import ViewConfig
from cclm.data.ledger import image_hash
from cclm.data.mix_plan import LanguageMix, RequestedLanguage
from cclm.data.options import TeacherConfig
from cclm.data.seeding import keyed_generator
from cclm.data.stream import Address, Stream
from cclm.data.tokens import TextTokenizer
from cclm.errors import Cause, CclmError, ConfigError, DataError
from cclm.run.causes import cause_of, retried
from cclm.shardfile.manifest import Manifest
from cclm.shardfile.options import CacheConfig, is_remote
from cclm.shardfile.reader import Place, ShardSet
from cclm.shardfile.remote import open_set

MAX_REPLACEMENTS = 16
"""How many neighbours of a broken sample are tried; more broken ones in a row are no accident."""

Keys = Mapping[str, Sequence[int]]
"""Of a sample, by side: what a teacher's features of its rows are found by."""
Settings = TypeVar("Settings", bound=ViewConfig)
Sample = TypeVar("Sample")


@dataclass(frozen=True, kw_only=True)
class ShownSample:
    """A sample that a step shows, and where it stands."""

    view: str
    source: str
    """Its name in the view's settings."""
    shard: str
    key: str
    languages: tuple[str, ...]
    """Of its texts; none where a view names them later."""


class SampleSet(Protocol):
    """Where samples lie: a shard set, or anything else that knows them by two numbers."""

    @property
    def samples_per_shard(self) -> list[int]:
        """Samples of each part."""

    @property
    def languages(self) -> list[str]:
        """Languages of its texts, sorted."""

    def locate(self, shard: int, sample: int) -> Place:
        """Return what an error message calls a sample."""

    def forget(self, shard: int) -> None:
        """Close a part, if it is open."""


class SampleStream(Protocol):
    """In which order samples are shown, as arithmetic: see `Stream`."""

    end_step: int | None
    """Steps that there are data for; None: no limit."""

    def address(self, step: int, index: int) -> Address:
        """Return the sample of an index of a step."""

    def replacement(self, address: Address, attempt: int) -> Address | None:
        """Return what to read instead of a broken sample; None: there is nothing left."""


class SampleSource(ABC, Generic[Settings, Sample]):
    """One view's data: where its samples lie (a set for each source), their order, and the policy for broken ones."""

    stream_bits: ClassVar[int]
    """Flipped in the seed of the view's stream: views must not share their shuffles. No two views have the same."""
    sample_purpose: ClassVar[int]
    """Key of everything that is drawn about a sample (`cclm.data.seeding`). No two views have the same."""
    mend: ClassVar[str] = "Correct these rows, or the files that they name."
    """What to do where many samples in a row are broken."""
    sets: Sequence[SampleSet]
    stream: SampleStream

    def __init__(
        self,
        name: str,
        config: Settings,
        tokenizer: TextTokenizer,
        seed: int,
        cache: CacheConfig | None = None,
        pad_multiple: int = 1,
    ) -> None:
        self.name, self.config = name, config
        self.tokenizer, self.seed, self.pad_multiple = tokenizer, seed, pad_multiple
        self.paths = [source.path for source in config.ordered_sources.values()]
        self.sets, self.stream = self._open(cache or CacheConfig())
        self.languages = [one.languages for one in self.sets]
        self._names = [f"{name}/{source}" for source in config.ordered_sources]
        self._seen: Counter[str] = Counter()
        self._shown: list[ShownSample] | None = None

    @abstractmethod
    def _open(self, cache: CacheConfig) -> tuple[Sequence[SampleSet], SampleStream]:
        """Return a set for each source, and their order."""

    @abstractmethod
    def batch(self, step: int, rows: range, bad: list[BadSample]) -> ViewBatch:
        """Build the batch of some rows of the stream's `step`; broken samples are added to `bad`."""

    @abstractmethod
    def make(self, address: Address, fusion: bool) -> Sample:
        """Make a sample of a record; `fusion`: the row goes through the fusion encoder (DataError: it is broken)."""

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

    def shown(self, step: int, rows: range) -> list[ShownSample]:
        """Return the samples of some rows of the stream's `step`, read again; nothing is counted."""
        again = copy(self)
        again._seen, again._shown = Counter(), []
        again.batch(step, rows, [])
        return again._shown

    def generator(self, address: Address) -> np.random.Generator:
        """The generator of everything random about a sample: caption, crop, flip, masks, noise, coins."""
        return keyed_generator(self.seed, self.sample_purpose, 0, (0, address.epoch, address.position))

    def matching_rows(self, rows: range) -> tuple[frozenset[int], bool]:
        """Which of some rows go through the fusion encoder, and whether they count: a rank that holds none lets its
        first one go, as every rank must run every module."""
        found = frozenset(filter(self.config.is_matching_row, rows))
        return (found, True) if found else (frozenset(rows[:1]), False)

    def prefetch(self, step: int, indices: range) -> None:
        """Let what these indices need be fetched that is read some steps after `step`; here all of it is at hand."""

    def samples(
        self,
        step: int,
        indices: range,
        bad: list[BadSample],
        *,
        matching: Container[int] = (),
        counted: Container[int] | None = None,
    ) -> Iterator[Sample]:
        """Yield the samples of some indices of a step; broken ones that they stand in for are added to `bad`.

        `matching`: those whose rows go through the fusion encoder. `counted`: those that this rank counts; None: all.
        """
        self.prefetch(step, indices)
        for index in indices:
            address, sample, broken = self.sample(step, index, index in matching)
            if counted is None or index in counted:
                self._count(address, sample)
                bad += broken
            yield sample

    def sample(self, step: int, index: int, fusion: bool = False) -> tuple[Address, Sample, list[BadSample]]:
        """The sample of an index, where it stands, and the broken ones that it stands in for.

        Raises:
            DataError: `neighbourhood_broken`, if no replacement can be found near by.
            CclmError: the disk failed, or the process has reached a limit: that says nothing about the sample.
        """
        address = self.stream.address(step, index)
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
            do=self.mend,
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
        name, languages = self._names[address.source], tuple(getattr(sample, "languages", ()))
        self._seen[name] += 1
        for language in languages:
            self._seen[f"{name}/{language}"] += 1
        if self._shown is not None:
            place, source = self._locate(address), name.removeprefix(f"{self.name}/")
            shown = ShownSample(view=self.name, source=source, shard=place.tar, key=place.key, languages=languages)
            self._shown.append(shown)

    def _describe(self, address: Address, error: DataError) -> BadSample:
        shard, offset, key = self._locate(address)
        return BadSample(
            view=self.name,
            source=self.paths[address.source],
            shard=shard,
            offset=offset,
            key=key,
            reason=error.reason,
            message=str(error),
        )

    def _locate(self, address: Address) -> Place:
        return self.sets[address.source].locate(address.shard, address.sample)


class NoSamples(SampleSource[Settings, Any]):
    """The data of a view of a run that trains nothing: it only tells settings and tokenizer."""

    stream_bits = 0
    sample_purpose = 0
    end_step: int | None = 0

    def _open(self, cache: CacheConfig) -> tuple[Sequence[SampleSet], SampleStream]:
        return [], self

    def _nothing(self, *arguments: Any, **named: Any) -> Any:
        raise AssertionError("nothing is trained")

    address = replacement = batch = make = _nothing


class Teacher:
    """The features of a teacher, and which of a view's sets its images are from.

    `manifests`: of the view's sets, in their order. Raises ConfigError: see `open_index`.
    """

    def __init__(self, config: TeacherConfig, cache: CacheConfig, manifests: Sequence[Manifest]) -> None:
        from cclm.data.teacher import open_index  # pyarrow

        self._index = open_index(config, cache)
        self.has_images = self._index.facts.num_images > 0
        """Whether it knows images at all."""
        sets = self._index.facts.images
        self._fingerprints = [next((one.fingerprint for one in sets if one.is_of(set_)), "") for set_ in manifests]

    def image_hash(self, source: int, key: str) -> int:
        """Return what an image of a source is found by."""
        return image_hash(self._fingerprints[source], key)

    def rows(self, samples: Sequence[Keys], numbers: range) -> dict[str, Taught]:
        """Return what is known of each side of some samples, which have these numbers in the global batch."""
        found = {}
        for side in samples[0]:
            key_SK = np.array([sample[side] for sample in samples], dtype=np.int64)
            row_N = np.arange(numbers.start * key_SK.shape[1], numbers.stop * key_SK.shape[1])
            feature_NT, is_known_N = self._index.look_up(key_SK.reshape(-1))
            row_N[~is_known_N] = -1
            found[side] = Taught(feature_NT=torch.from_numpy(feature_NT), row_N=torch.from_numpy(row_N))
        return found


class Source(SampleSource[Settings, Sample]):
    """The data of a view whose samples lie in shard sets; remote ones are kept in `cache`.

    Raises:
        ConfigError: a set of another view, an empty one, language weights that no source has.
    """

    sets: list[ShardSet]
    stream: Stream
    mend = (
        "`python -m shards verify` on this set names what is damaged: copy these shards again. A set that is "
        "built anew is another run."
    )

    def _open(self, cache: CacheConfig) -> tuple[list[ShardSet], Stream]:
        config, sources = self.config, self.config.ordered_sources
        sets = [open_set(source.path, cache) for source in sources.values()]
        for shard_set in sets:
            wanted = config.record_view
            if wanted is not None and shard_set.view is not wanted:
                raise ConfigError(
                    expected=f"a shard set of view {wanted.value}",
                    got=f"one of view {shard_set.view.value}",
                    do=f"Move it to another view's `sources` (views.{self.name}.sources names it).",
                    where=str(shard_set.folder),
                )
        stream = Stream(
            [shard_set.samples_per_shard for shard_set in sets],
            sources,
            self.seed ^ self.stream_bits,
            config.num_lanes,
            config.window,
            config.samples_per_step,
            config.mix,
            config.length_buckets,
            self.lengths,
        )
        self.teacher: Teacher | None = None
        if config.teacher is not None:
            self.teacher = Teacher(config.teacher, cache, [shard_set.manifest for shard_set in sets])
        self._ahead = cache.prefetch_steps if any(map(is_remote, self.paths)) else 0
        self._prefetched: dict[int, int] = {}  # by first index: the steps before this one
        self._languages: LanguageMix | None = None
        if config.mix.has_language_weights:
            languages = {name: one.languages for name, one in zip(sources, sets, strict=True)}
            self._languages = LanguageMix(config.mix, languages, stream.assignment)
        return sets, stream

    def lengths(self, source: int, shards: NDArray[np.int64], samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return a number for each sample that grows with the length of its texts; 0 for broken ones."""
        raise NotImplementedError(f"{type(self).__name__} knows no lengths of texts")

    def requested(self, address: Address) -> RequestedLanguage | None:
        """The language to show, if languages have weights."""
        if self._languages is None:
            return None
        turn = address.position // self.stream.num_lanes
        return self._languages.requested(address.source, address.lane, turn, address.draw)

    def prefetch(self, step: int, indices: range) -> None:
        """Let the remote shards of these indices be fetched that will be read some steps after `step`."""
        if not self._ahead:
            return
        stop = step + self._ahead + 1
        if self.stream.end_step is not None:
            stop = min(stop, self.stream.end_step)
        for number in range(max(step, self._prefetched.get(indices.start, 0)), stop):
            for index in indices:
                address = self.stream.address(number, index)
                self.sets[address.source].prefetch(address.shard)
        self._prefetched[indices.start] = stop

    def _locate(self, address: Address) -> Place:
        try:
            return super()._locate(address)
        except DataError:  # the index itself is broken
            shards = self.sets[address.source].manifest.shards
            return Place(shards[address.shard].name, -1, f"#{address.sample}")


def is_fault(error: DataError) -> bool:
    """Return whether a sample could not be used because the system failed, and not because of its file or bytes."""
    reason = error.__cause__ or error.__context__
    is_limit = isinstance(reason, OSError) and reason.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
    return is_limit or cause_of(error) is not Cause.USER_ERROR
