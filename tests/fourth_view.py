"""A view of a program's own, sounds with texts: all of it is in this file, and nothing else knows it.

| first side, the memory | second side, the query | masked text | memory of the masked text |
|---|---|---|---|
| spectrogram | text about the sound | that text | the spectrogram |

A record's bytes are taken for a recording. This is the file to copy for a view of your own (docs/extending.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from cclm.data.batch import BadSample, PixelScale
from cclm.data.collate import FusionDraws, fusion_draws, int64, pad, row_tensors
from cclm.data.config import ViewConfig
from cclm.data.ledger import identity_hash, sample_hash
from cclm.data.source import Source
from cclm.data.stream import Address
from cclm.errors import DataError
from cclm.model.options import ModelOptions
from cclm.objectives.options import ObjectiveConfig
from cclm.types import Positive
from cclm.types import View as RecordView
from cclm.views.entry import ViewEntry
from cclm.views.images import ImageBatch, image_rows
from cclm.views.view import Contrast, Contribution, EncodedView, Side, View


@dataclass(frozen=True, kw_only=True)
class AudioTextConfig(ViewConfig):
    """Sounds with texts about them; a row is a spectrogram with one of its texts."""

    num_bins: Positive = 16
    """Frequencies of a spectrogram, and its moments in time: the side of the image that the network sees."""

    record_view: ClassVar[RecordView] = RecordView.IMAGE_TEXT
    trains: ClassVar[frozenset[str]] = frozenset({"vision"})

    def model_errors(self, model: ModelOptions, pad_multiple: int) -> Iterator[str]:
        """Yield in what these settings and the network do not fit; each sentence begins with a field."""
        yield from super().model_errors(model, pad_multiple)
        if self.num_bins != model.vision.image_size:
            yield f"num_bins {self.num_bins} is not model.vision.image_size {model.vision.image_size}"


@dataclass(frozen=True, kw_only=True)
class AudioTextSample:
    """A spectrogram with one text."""

    spectrogram_HW: NDArray[np.uint8]
    """Frequencies, moments."""
    ids: Sequence[int]
    languages: Sequence[str]
    """Of the text; counted in `samples_seen`."""
    identity: int
    ledger: int
    fusion: FusionDraws | None


class AudioTextBatch(ImageBatch):
    """Spectrograms in place of images."""


class AudioTextSource(Source[AudioTextConfig, AudioTextSample]):
    """Shard sets of sounds with texts."""

    stream_bits = 1 << 61
    sample_purpose = 16

    def batch(self, step: int, rows: range, bad: list[BadSample]) -> AudioTextBatch:
        """Build the batch of some rows of a step."""
        matching, is_counted = self.matching_rows(rows)
        samples = list(self.samples(step, rows, bad, matching=matching))
        pad_id, multiple = self.tokenizer.pad_id, self.pad_multiple
        spectrograms_BHW = torch.from_numpy(np.stack([sample.spectrogram_HW for sample in samples]))
        return AudioTextBatch(
            images_BCHW=spectrograms_BHW[:, None].repeat(1, 3, 1, 1),
            pixel_scale=PixelScale(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)),
            text=pad([sample.ids for sample in samples], pad_id, multiple),
            identity_R=int64([sample.identity for sample in samples]),
            ledger_S=int64([sample.ledger for sample in samples]),
            **row_tensors(rows, [sample.fusion for sample in samples], is_counted, pad_id, multiple),
        )

    def make(self, address: Address, fusion: bool) -> AudioTextSample:
        """Read a record; draw, in this order: its text, where the recording begins, masks, noise."""
        record = self.sets[address.source].image_text(address.shard, address.sample)
        config, generator = self.config, self.generator(address)
        language = sorted(record.captions)[int(generator.integers(len(record.captions)))]
        (ids,) = self.tokenizer.encode([record.captions[language][0]], config.max_tokens, config.max_words)
        first = int(generator.integers(config.num_bins))
        draws = None
        if fusion:
            draws = fusion_draws(ids, config.masking, config.negative_group, self.tokenizer, generator)
        return AudioTextSample(
            spectrogram_HW=spectrogram(record.image[first:], config.num_bins),
            ids=ids,
            languages=[language],
            identity=identity_hash(record.identity or record.key),
            ledger=sample_hash(record.source, record.key, f"{language}:{first}"),
            fusion=draws,
        )


def spectrogram(recording: bytes, num_bins: int) -> NDArray[np.uint8]:
    """Return the loudness of `num_bins` frequencies at `num_bins` moments.

    Raises:
        DataError: `recording_silent`.
    """
    wave = np.frombuffer(recording, dtype=np.int8).astype(np.float32)
    if np.count_nonzero(wave) < 4 * num_bins:
        raise DataError(
            reason="recording_silent",
            expected=f"a recording with at least {4 * num_bins} values that are not 0",
            got=str(np.count_nonzero(wave)),
            do="Leave the record out of the shards.",
        )
    length = 2 * num_bins
    wave = np.pad(wave, (0, max(0, length - len(wave))))
    starts = np.linspace(0, len(wave) - length, num_bins).astype(np.int64)
    frames_HL = wave[starts[:, None] + np.arange(length)] * np.hanning(length)
    loudness_HW = np.log1p(np.abs(np.fft.rfft(frames_HL)[:, :num_bins])).T
    return np.asarray(255 * loudness_HW / loudness_HW.max(), dtype=np.uint8)


class AudioTextView(View[AudioTextConfig, AudioTextBatch]):
    """Sounds with texts."""

    source = AudioTextSource

    def contribute(self, objectives: ObjectiveConfig, batch: AudioTextBatch, encoded: EncodedView) -> Contribution:
        """Contrast spectrograms and texts; rows for matching and masked-LM."""
        assert encoded.images is not None
        features = encoded.images.feature_BE, encoded.texts[0].feature_BE
        sound, text = (Side(feature_NE=feature, identity_N=batch.identity_R) for feature in features)
        contrast = Contrast(name="atc", weight=objectives.itc_weight, pairs=[(sound, text)])
        return image_rows(objectives, batch, encoded, [contrast], matching="atm")


ENTRY = ViewEntry(
    config=AudioTextConfig,
    load=lambda: AudioTextView,
    title="Audio–text view",
    unit="recordings",
    contrastive="atc",
    matching="atm",
)
