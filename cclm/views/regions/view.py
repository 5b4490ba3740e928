"""The region view: boxes of images with texts about them.

| first side, the memory | second side, the query | masked text | memory of the masked text |
|---|---|---|---|
| image, pooled and masked to the region | text about it | that text | the same |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from cclm.data.batch import BadSample, PixelScale
from cclm.data.collate import FusionDraws, int64, pad, row_tensors
from cclm.data.seeding import keyed_generator
from cclm.data.source import Source
from cclm.data.stream import Address
from cclm.errors import ConfigError
from cclm.model.modeling_cclm import CCLMModel
from cclm.objectives.boxes import box_losses
from cclm.objectives.options import ObjectiveConfig
from cclm.views.images import ImageBatch, ImageBuffer, image_rows
from cclm.views.regions.options import RegionConfig
from cclm.views.regions.samples import RegionSample, RegionText, draw_rows, region_sample
from cclm.views.view import (
    Contrast,
    Contribution,
    EncodedView,
    FusionRows,
    LocatedRows,
    RowLoss,
    Side,
    States,
    View,
    select,
)

GROUP_PURPOSE = 6
"""Key of what is drawn about a group (`cclm.data.seeding`)."""


@dataclass(frozen=True, kw_only=True)
class RegionBatch(ImageBatch):
    """R texts about parts of B images, on one rank; a negative group's texts are about its own images."""

    image_of_R: Int[Tensor, " r"]
    """Which image each text is about."""
    mask_RN: Bool[Tensor, "r n"]
    """Image tokens of the region: token 0 and the patches under its box."""
    box_R4: Float[Tensor, "r 4"]
    """Centre x, centre y, width, height as shares of the image's sides, float32."""
    whole_R: Bool[Tensor, " r"]
    """True for captions of a whole image, whose box is no target."""


class RegionSource(Source[RegionConfig, RegionSample]):
    """Shard sets of images with regions; its rows are images, its batches are made of groups of texts."""

    stream_bits = 1 << 62
    sample_purpose = 5

    @property
    def counted(self) -> list[str]:
        """By source only: which texts a group takes, and in which languages, is drawn later."""
        return list(self._names)

    def batch(self, step: int, rows: range, bad: list[BadSample]) -> RegionBatch:
        """Build the batch of some rows of a step, and the images that they are about.

        Which texts a group takes is drawn from all of its images: a rank that shares a group with others reads all of
        them, keeps those that its rows are about, and counts its share. An image between two ranks is encoded by both.
        """
        size, per_group = self.config.negative_group, self.config.images_per_group
        counted = range(rows.start * per_group // size, rows.stop * per_group // size)
        matching, is_counted = self.matching_rows(rows)
        kept: list[tuple[int, RegionText, FusionDraws | None]] = []
        pixels: dict[int, NDArray[Any]] = {}
        ledger: list[int] = []
        for number in range(rows.start // size, -(-rows.stop // size)):
            first = number * per_group
            found = list(self.samples(step, range(first, first + per_group), bad, counted=counted))
            ledger += [sample.ledger for image, sample in enumerate(found, first) if image in counted]
            generator = keyed_generator(self.seed, GROUP_PURPOSE, 0, (number, 0, step))
            drawn = draw_rows(found, self.config, self.tokenizer, generator)
            for row, (image, text, draws) in enumerate(drawn, number * size):
                if row in rows:
                    pixels.setdefault(first + image, found[image].pixels_CHW)
                    kept.append((first + image, text, draws if row in matching else None))
        buffer, place = ImageBuffer(len(pixels)), {image: number for number, image in enumerate(pixels)}
        for image in place:
            buffer.put(pixels.pop(image))
        images, texts, fusion = zip(*kept, strict=True)
        pad_id, multiple = self.tokenizer.pad_id, self.pad_multiple
        return RegionBatch(
            images_BCHW=buffer.tensor(),
            pixel_scale=PixelScale(mean=self.config.transform.mean, std=self.config.transform.std),
            image_of_R=int64([place[image] for image in images]),
            mask_RN=torch.from_numpy(np.stack([text.mask_N for text in texts])),
            box_R4=torch.tensor([text.box for text in texts], dtype=torch.float32),
            whole_R=torch.tensor([text.is_whole for text in texts]),
            text=pad([text.ids for text in texts], pad_id, multiple),
            identity_R=int64([text.identity for text in texts]),
            ledger_S=int64(ledger),
            **row_tensors(rows, fusion, is_counted, pad_id, multiple),
        )

    def make(self, address: Address, fusion: bool) -> RegionSample:
        """Read a record and make a sample of it."""
        record = self.sets[address.source].image_text(address.shard, address.sample)
        return region_sample(record, record.image, self.config, self.tokenizer, self.generator(address))


class RegionView(View[RegionConfig, RegionBatch]):
    """Boxes of images with texts about them."""

    source = RegionSource

    def image_states(self, model: CCLMModel, batch: RegionBatch, whole_BND: Tensor) -> States:
        """Return the states of the regions: their image's, the first one pooled over the region."""
        if batch.mask_RN.shape[1] != whole_BND.shape[1]:
            raise ConfigError(
                where=f"views.{self.name}.patch_grid",
                expected=f"masks of 1 + {whole_BND.shape[1] - 1} image tokens",
                got=f"1 + {batch.mask_RN.shape[1] - 1}",
                do="Set patch_grid to the side of the image tower's grid (image_size over its stride).",
            )
        states_RND = model.pool_regions(whole_BND, batch.image_of_R, batch.mask_RN)
        return states_RND, batch.mask_RN

    def contribute(self, objectives: ObjectiveConfig, batch: RegionBatch, encoded: EncodedView) -> Contribution:
        """Contrast regions and texts; rows for matching, masked-LM, and boxes to locate in the whole images."""
        images, texts, row_F = encoded.images, encoded.texts[0], batch.matching_row_F
        assert images is not None
        features = images.feature_BE, texts.feature_BE
        region, text = (Side(feature_NE=feature, identity_N=batch.identity_R) for feature in features)
        all_tokens_BN = torch.ones(images.whole_BND.shape[:2], dtype=torch.bool, device=row_F.device)
        rows = FusionRows(
            query=select(texts.states, row_F),
            memory=(images.whole_BND, all_tokens_BN),
            memory_row_F=batch.image_of_R[row_F],
        )

        def losses(model: CCLMModel, fused_FLD: Tensor, mask_FL: Tensor) -> Mapping[str, RowLoss]:
            distance_F, overlap_F = box_losses(model.locate_boxes(fused_FLD, mask_FL), batch.box_R4[row_F])
            return {
                "box": RowLoss(loss_F=distance_F, weight=objectives.box_weight),
                "giou": RowLoss(loss_F=overlap_F, weight=objectives.giou_weight),
            }

        counted_F = batch.counted_F * ~batch.whole_R[row_F]
        located = LocatedRows(rows=rows, counted_F=counted_F, losses=losses, is_pooled=True)
        contrast = Contrast(name="itc", weight=objectives.itc_weight, pairs=[(region, text)])
        return image_rows(objectives, batch, encoded, [contrast], located)
