"""Samples of one rank → the tensors of `cclm.data.batch`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cclm.data.batch import ImageTextBatch, MaskedTokens, PixelScale, RegionBatch, TextPairBatch, Tokens
from cclm.data.regions import RegionRow, RegionSample
from cclm.data.samples import FusionDraws, ImageTextSample, TextPairSample


def pad(rows: Sequence[Sequence[int] | NDArray[np.int64]], pad_id: int, multiple: int = 1) -> Tokens:
    """Stack texts, padded to the longest, rounded up to a multiple of `multiple`."""
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    width = -(-int(lengths.max(initial=1)) // multiple) * multiple
    mask = np.arange(width)[None, :] < lengths[:, None]
    ids = np.full((len(rows), width), pad_id, dtype=np.int64)
    ids[mask] = np.concatenate([np.asarray(row, dtype=np.int64) for row in rows])
    return Tokens(ids_BL=torch.from_numpy(ids), mask_BL=torch.from_numpy(mask))


def masked_tokens(draws: Sequence[FusionDraws], pad_id: int, multiple: int) -> MaskedTokens:
    """Stack masked texts; slots are flat indices into the padded rows, in row order."""
    tokens = pad([draw.masked.ids_L for draw in draws], pad_id, multiple)
    width = tokens.ids_BL.shape[1]
    slots = np.concatenate([draw.masked.column_T + row * width for row, draw in enumerate(draws)])
    labels = np.concatenate([draw.masked.label_T for draw in draws])
    return MaskedTokens(tokens=tokens, slot_T=torch.from_numpy(slots), label_T=torch.from_numpy(labels))


def _int64(values: Sequence[int]) -> torch.Tensor:
    return torch.from_numpy(np.array(values, dtype=np.int64))


def _noise(draws: Sequence[FusionDraws]) -> tuple[torch.Tensor, torch.Tensor]:
    second = np.stack([draw.noise_second_G for draw in draws])
    first = np.stack([draw.noise_first_G for draw in draws])
    return torch.from_numpy(second), torch.from_numpy(first)


PictureSample = TypeVar("PictureSample", ImageTextSample, RegionSample)


class Pictures:
    """The pictures of a batch, each copied into its place while it is still in the processor's cache: at the end, they
    would all come from memory again, and be held twice."""

    def __init__(self, count: int) -> None:
        self._count, self._filled = count, 0
        self._pixels_BCHW: NDArray[Any] = np.empty(0)

    def take(self, sample: PictureSample) -> PictureSample:
        """Put the picture of the next sample into the batch; returns the sample with that place for its pixels."""
        pixels_CHW: NDArray[Any] = sample.pixels_CHW
        if self._filled == 0:
            self._pixels_BCHW = np.empty((self._count, *pixels_CHW.shape), pixels_CHW.dtype)
        place = self._pixels_BCHW[self._filled]
        place[:] = pixels_CHW
        self._filled += 1
        return replace(sample, pixels_CHW=place)

    def tensor(self) -> Tensor:
        """All of them, (B, 3, height, width)."""
        assert self._filled == self._count > 0, f"{self._filled} of {self._count} pictures"
        return torch.from_numpy(self._pixels_BCHW)


def collate_image_text(
    samples: Sequence[ImageTextSample],
    pictures: Pictures,
    pad_id: int,
    multiple: int = 1,
    pixel_scale: PixelScale | None = None,
) -> ImageTextBatch:
    """Build the image-text part of a rank's batch from its samples, in slot order.

    Args:
        samples: of this rank.
        pictures: theirs.
        pad_id: the tokenizer's.
        multiple: texts are padded to a multiple of this length.
        pixel_scale: how the device will normalise pictures that are bytes.
    """
    draws = [sample.fusion for sample in samples if sample.fusion is not None]
    noise_second, noise_first = _noise(draws)
    return ImageTextBatch(
        images_BCHW=pictures.tensor(),
        text=pad([sample.ids for sample in samples], pad_id, multiple),
        identity_B=_int64([sample.identity for sample in samples]),
        matching_row_F=_int64([row for row, sample in enumerate(samples) if sample.fusion is not None]),
        noise_second_FG=noise_second,
        noise_first_FG=noise_first,
        masked=masked_tokens(draws, pad_id, multiple),
        ledger_B=_int64([sample.ledger for sample in samples]),
        second_text=_second_texts(samples, pad_id, multiple),
        pixel_scale=pixel_scale,
    )


def _second_texts(samples: Sequence[ImageTextSample], pad_id: int, multiple: int) -> Tokens | None:
    texts = [sample.second_ids for sample in samples if sample.second_ids is not None]
    return pad(texts, pad_id, multiple) if texts else None


def collate_regions(
    groups: Sequence[tuple[Sequence[RegionSample], Sequence[RegionRow]]],
    pictures: Pictures,
    pad_id: int,
    multiple: int = 1,
    pixel_scale: PixelScale | None = None,
) -> RegionBatch:
    """Build the region part of a rank's batch from its groups: the rows of each, in order, about `pictures`."""
    samples = [sample for found, _ in groups for sample in found]
    starts = np.cumsum([0, *(len(found) for found, _ in groups)]).tolist()
    rows = [(start + row.image, row) for start, (_, own) in zip(starts, groups, strict=False) for row in own]
    draws = [row.fusion for _, row in rows if row.fusion is not None]
    noise_second, noise_first = _noise(draws)
    return RegionBatch(
        images_BCHW=pictures.tensor(),
        image_of_R=_int64([image for image, _ in rows]),
        mask_RN=torch.from_numpy(np.stack([row.text.mask_N for _, row in rows])),
        box_R4=torch.tensor([row.text.box for _, row in rows], dtype=torch.float32),
        whole_R=torch.tensor([row.text.is_whole for _, row in rows]),
        text=pad([row.text.ids for _, row in rows], pad_id, multiple),
        identity_R=_int64([row.identity for _, row in rows]),
        matching_row_F=_int64([number for number, (_, row) in enumerate(rows) if row.fusion is not None]),
        noise_second_FG=noise_second,
        noise_first_FG=noise_first,
        masked=masked_tokens(draws, pad_id, multiple),
        ledger_B=_int64([sample.ledger for sample in samples]),
        pixel_scale=pixel_scale,
    )


def collate_text_pairs(
    samples: Sequence[TextPairSample], pad_id: int, multiple: int = 1, *, tlm: bool = False
) -> TextPairBatch:
    """Build the text-pair part of a rank's batch; equal token sequences become one row of `text`.

    Rows stand in the order of their first use: a sample's shared sentence, then its translations. `tlm`: the masked
    texts hold both sentences of a pair.
    """
    row_of: dict[tuple[int, ...], int] = {}
    first: list[int] = []
    second: list[int] = []
    memory: list[int] = []
    query: list[int] = []
    for sample in samples:
        anchor = row_of.setdefault(tuple(sample.anchor), len(row_of))
        others = [row_of.setdefault(tuple(ids), len(row_of)) for ids in sample.others]
        first += [anchor] * len(others)
        second += others
        memory.append(others[0] if sample.swapped else anchor)
        query.append(anchor if sample.swapped else others[0])
    draws = [sample.fusion for sample in samples if sample.fusion is not None]
    noise_second, noise_first = _noise(draws)
    return TextPairBatch(
        text=pad(list(row_of), pad_id, multiple),
        first_P=_int64(first),
        second_P=_int64(second),
        identity_P=_int64([sample.identity for sample in samples for _ in sample.others]),
        matching_row_F=_int64([row for row, sample in enumerate(samples) if sample.fusion is not None]),
        memory_S=_int64(memory),
        query_S=_int64(query),
        identity_S=_int64([sample.identity for sample in samples]),
        noise_second_FG=noise_second,
        noise_first_FG=noise_first,
        masked=masked_tokens(draws, pad_id, multiple),
        ledger_S=_int64([sample.ledger for sample in samples]),
        tlm=tlm,
    )
