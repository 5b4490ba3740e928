"""Annotated rows → samples → batches, in the order of epochs; in the order of their file for evaluation; their views.

epoch      a seeded order of all rows, cut into whole batches; the incomplete last one is dropped
step k     epoch k // steps, batch k % steps of it, whatever the ranks
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Final, Generic, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cclm.annotations.rows import images_of
from cclm.data.batch import BadSample, PixelScale
from cclm.data.collate import FusionDraws, int64, no_matching_rows, pad
from cclm.data.decoding import decode_image
from cclm.data.image import eval_image, prepare, training_pixels
from cclm.data.ledger import identity_hash, sample_hash
from cclm.data.seeding import Purpose, keyed_generator
from cclm.data.source import SampleSource
from cclm.data.stream import Address
from cclm.errors import ConfigError, DataError
from cclm.model.modeling_cclm import CCLMModel
from cclm.shardfile.options import CacheConfig
from cclm.views.annotated.options import AnnotatedConfig
from cclm.views.annotated.rows import Images, Row, RowSet, text_of
from cclm.views.captions import names_a_side
from cclm.views.images import ImageBatch, ImageBuffer
from cclm.views.view import Contribution, EncodedView, FusionRows, HeadLosses, LocatedRows, View

Corners = tuple[float, float, float, float]
"""Left, top, right, bottom of a box as shares of an image's sides."""
_DOT: Final = np.zeros((3, 1, 1), np.uint8)
Line: TypeAlias = Mapping[str, Any]
"""What is kept of the prediction for a row."""
Given = TypeVar("Given")
Settings = TypeVar("Settings", bound=AnnotatedConfig)
BatchType = TypeVar("BatchType", bound=ImageBatch)


@dataclass(frozen=True, kw_only=True)
class RowSample:
    """A row with its images."""

    pixels_NCHW: tuple[NDArray[Any], ...]
    ids: Sequence[int]
    row: Row
    ledger: int
    corners: Corners | None = None
    """Of the row's box, where its image was cropped or mirrored in training."""
    fusion: FusionDraws | None = None
    """Of a pair that goes through the fusion encoder, with which its hard negatives are drawn."""

    @property
    def languages(self) -> Sequence[str]:
        """Of its text."""
        return [self.row.language]


class EpochStream:
    """All rows of some files, epoch after epoch, each in a seeded order of its own (`SampleStream`)."""

    end_step: int | None = None

    def __init__(self, counts: Sequence[int], seed: int, batch_size: int) -> None:
        self.counts, self.total, self.seed, self.batch_size = list(counts), sum(counts), seed, batch_size
        self.steps_per_epoch = self.total // batch_size
        self._ends = np.cumsum(self.counts)
        self._order = lru_cache(maxsize=2)(self._draw_order)

    def address(self, step: int, index: int) -> Address:
        """Return the row of an index of a step."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        return self._at(epoch, batch * self.batch_size + index, 0)

    def replacement(self, address: Address, attempt: int) -> Address | None:
        """Return the attempt-th next row of the epoch, as which a broken one is shown; None: it was every row."""
        return self._at(address.epoch, address.draw, attempt) if attempt < self.total else None

    def _at(self, epoch: int, place: int, skip: int) -> Address:
        row = int(self._order(epoch)[(place + skip) % self.total])
        source = int(np.searchsorted(self._ends, row, side="right"))
        sample = row - int(self._ends[source]) + self.counts[source]
        return Address(source=source, shard=0, sample=sample, epoch=epoch, position=place, lane=0, draw=place)

    def _draw_order(self, epoch: int) -> NDArray[np.int64]:
        return keyed_generator(self.seed, Purpose.WINDOW, 0, (0, 0, epoch)).permutation(self.total)


class AnnotatedSource(SampleSource[Settings, RowSample], Generic[Settings, BatchType]):
    """The rows of a view's annotation files.

    Raises:
        ConfigError: a file that is not there or not readable, or fewer rows than a batch holds.
    """

    _opens_images = True  # else black dots stand for them (`look_at`)

    def _open(self, cache: CacheConfig) -> tuple[list[RowSet], EpochStream]:
        config, sources = self.config, self.config.ordered_sources
        sets = [RowSet(config.path(source.path), config.format, key) for key, source in sources.items()]
        stream = EpochStream([len(one.rows) for one in sets], self.seed ^ self.stream_bits, config.batch_size)
        if sources and not stream.steps_per_epoch:
            raise ConfigError(
                where=f"views.{self.name}.batch_size", expected=f"at most the {stream.total} rows of its sources",
                got=str(config.batch_size), do="Lower it.",
            )  # fmt: skip
        self._rows = [one.rows for one in sets]
        self.images = Images(*config.image_folders)
        return sets, stream

    def batch(self, step: int, rows: range, bad: list[BadSample]) -> BatchType:
        """Build the batch of some rows of a step; broken ones are replaced and added to `bad`."""
        return self.collate(list(self.samples(step, rows, bad)), rows)

    def make(self, address: Address, fusion: bool = False) -> RowSample:
        """Make a sample of a row, as it is trained on."""
        return self.trained(self._rows[address.source][address.sample], self.generator(address))

    def trained(self, row: Row, generator: np.random.Generator) -> RowSample:
        """Make a sample of a row; what is drawn comes from the generator."""
        pixels, transform = [], self.config.transform
        if names_a_side({row.language: [text_of(row)]}):  # "left" must not become right
            transform = replace(transform, flip_probability=0.0)
        for name in images_of(row):
            image = self.images.read(name)
            is_photo = transform.method == "random_resized_crop"
            source = image if is_photo else prepare(decode_image(image, where=name), transform)
            pixels.append(training_pixels(source, transform, generator))
        return self.sample_of(row, pixels)

    def look_at(self, rows: Sequence[Row], batch_size: int) -> None:
        """Do to rows what `evaluated` will, but open no image: what cannot be measured is found in seconds.

        Raises:
            ConfigError, DataError: as `evaluated`; an image that is not there.
        """
        self.images.look_for(dict.fromkeys(name for row in rows for name in images_of(row)))
        blind = copy(self)
        blind._opens_images = False
        for batch in batches_of(rows, batch_size):
            blind.evaluated(batch)

    def evaluated(self, rows: Sequence[Row], first: int = 0) -> BatchType:
        """Build a batch for evaluation: nothing is drawn, cropped or replaced.

        Raises:
            DataError: a text or an image that cannot be used.
        """
        samples = []
        for row in rows:
            pixels = [self._tested(name) for name in images_of(row)]
            try:
                samples.append(self.sample_of(row, pixels, is_test=True))
            except DataError as error:  # of a text: only the row says which
                raise error.at(f"row {row.id}") from error
        return self.collate(samples, range(first, first + len(samples)))

    def _tested(self, name: str) -> NDArray[Any]:
        if not self._opens_images:
            return _DOT
        return eval_image(decode_image(self.images.read(name), where=name), self.config.transform)

    @abstractmethod
    def collate(self, samples: Sequence[RowSample], rows: range) -> BatchType:
        """Make a batch of samples; `rows`: their numbers in the global batch."""

    def shared_fields(self, samples: Sequence[RowSample], rows: range) -> dict[str, Any]:
        """Return the fields of an `ImageBatch`: the first images of all rows, then the second ones, …"""
        places = range(self.config.images_per_row)
        buffer = ImageBuffer(len(samples) * len(places))
        for place in places:
            for sample in samples:
                buffer.put(sample.pixels_NCHW[place])
        return dict(
            images_BCHW=buffer.tensor(),
            pixel_scale=PixelScale(mean=self.config.transform.mean, std=self.config.transform.std),
            text=pad([sample.ids for sample in samples], self.tokenizer.pad_id, self.pad_multiple),
            identity_R=int64([identity_hash(" ".join(images_of(sample.row))) for sample in samples]),
            ledger_S=int64([sample.ledger for sample in samples]),
            **no_matching_rows(rows),
        )

    def sample_of(self, row: Row, pixels: Sequence[NDArray[Any]], *, is_test: bool = False) -> RowSample:
        """Make a sample of a row and its images (ConfigError: another number of images than the view's)."""
        config = self.config
        if len(pixels) != config.images_per_row:
            raise ConfigError(
                where=f"row {row.id}", expected=f"{config.images_per_row} images (images_per_row)",
                got=", ".join(images_of(row)), do=f"Correct the row, or views.{self.name}.images_per_row.",
            )  # fmt: skip
        longest = (config.max_tokens, config.max_words)
        if is_test:
            longest = (config.test_max_tokens or config.max_tokens, config.test_max_words)
        (ids,) = self.tokenizer.encode([text_of(row)], *longest)
        ledger = sample_hash(self.name, row.id, row.language)
        return RowSample(pixels_NCHW=tuple(pixels), ids=ids, row=row, ledger=ledger)


def batches_of(rows: Sequence[Given], batch_size: int) -> Iterator[Sequence[Given]]:
    """Yield rows in batches, whole but for the last."""
    return (rows[first : first + batch_size] for first in range(0, len(rows), batch_size))


class AnnotatedView(View[Settings, BatchType]):
    """A view whose rows have right answers."""

    def reading(
        self, batch: BatchType, encoded: EncodedView, losses: HeadLosses, *, is_pooled: bool = True
    ) -> Contribution:
        """Let each text read its image, or its images, for the view's own head."""
        assert encoded.images is not None
        row_RI = torch.arange(self.config.images_per_row * len(batch.row_R), device=batch.row_R.device)
        row_RI = row_RI.view(self.config.images_per_row, -1).T
        rows = FusionRows(
            query=encoded.texts[0].states,
            memory=encoded.images.states,
            memory_row_F=row_RI[:, 0] if self.config.images_per_row == 1 else row_RI,
        )
        counted_R = torch.ones(len(batch.row_R), device=batch.row_R.device)
        return Contribution(located=LocatedRows(rows=rows, counted_F=counted_R, losses=losses, is_pooled=is_pooled))

    @abstractmethod
    def predict(self, model: CCLMModel, batch: BatchType) -> dict[str, Tensor]:
        """Compute what is predicted for the rows of a batch, by the methods that an export has, too."""

    @abstractmethod
    def judge(self, rows: Sequence[Row], outputs: Mapping[str, Tensor]) -> list[Line]:
        """Say what was predicted for each row, and what is right, as `cclm.evaluate.scores` has it."""
