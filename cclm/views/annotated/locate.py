"""The locate view: where in an image is what a phrase means? (RefCOCO and its like.)

| memory | query | head |
|---|---|---|
| image | phrase | box |
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cclm.annotations.rows import BoxRow
from cclm.data.image import cut, finish, photo_size
from cclm.errors import ConfigError
from cclm.model.modeling_cclm import CCLMModel
from cclm.objectives.boxes import box_losses
from cclm.objectives.options import ObjectiveConfig
from cclm.rows.guard import refuse
from cclm.views.annotated.options import LocateConfig
from cclm.views.annotated.rows import Row
from cclm.views.annotated.source import AnnotatedSource, AnnotatedView, Corners, Line, RowSample
from cclm.views.captions import names_a_side
from cclm.views.images import ImageBatch
from cclm.views.regions.samples import clip_to_crop, draw_crop
from cclm.views.view import Contribution, EncodedView, RowLoss


@dataclass(frozen=True, kw_only=True)
class LocateBatch(ImageBatch):
    """R phrases with their boxes."""

    box_R4: Float[Tensor, "r 4"]
    """Centre x, centre y, width, height as shares of what is seen of the image."""
    size_R2: Float[Tensor, "r 2"]
    """Width and height of the annotated image in pixels."""


class LocateSource(AnnotatedSource[LocateConfig, LocateBatch]):
    """Phrases with boxes."""

    stream_bits = 1 << 58
    sample_purpose = 19

    def trained(self, row: Row, generator: np.random.Generator) -> RowSample:
        """Make a sample of a random crop that holds the box, mirrored by a coin; or of the whole image.

        Raises:
            DataError: the box lies outside its image (reason region_missing).
        """
        transform, boxed = self.config.transform, with_box(row)
        left, top, right, bottom = self._corners(boxed)
        if left >= right or top >= bottom:
            refuse("region_missing", f"a box inside an image of {self._size(boxed)} pixels", str(boxed.box), row.id)
        if transform.method == "none":
            return super().trained(row, generator)
        image = self.images.read(boxed.image)
        width, height = photo_size(image)
        box = (left * width, top * height, right * width, bottom * height)
        outer = (math.floor(box[0]), math.floor(box[1]), math.ceil(box[2]), math.ceil(box[3]))
        crop = draw_crop(outer, (width, height), generator)
        seen = clip_to_crop(box, crop, 0.0)
        assert seen is not None, "the crop holds the box"
        is_free = not names_a_side({boxed.language: [boxed.text]})  # "left" must not become right
        flip = bool(generator.random() < transform.flip_probability) and is_free
        if flip:
            seen = (1.0 - seen[2], seen[1], 1.0 - seen[0], seen[3])
        pixels = finish(cut(image, crop, transform), flip, transform, generator)
        return replace(self.sample_of(row, [pixels]), corners=seen)

    def look_at(self, rows: Sequence[Row], batch_size: int) -> None:
        """As the base; the size of an image that the file does not tell is not looked for."""
        super().look_at([replace(box, size=box.size or (1, 1)) for box in map(with_box, rows)], batch_size)

    def collate(self, samples: Sequence[RowSample], rows: range) -> LocateBatch:
        """Make a batch of samples (ConfigError: a row without a box)."""
        boxed = [with_box(sample.row) for sample in samples]
        corners = [sample.corners or self._corners(row) for sample, row in zip(samples, boxed, strict=True)]
        corners_R4 = torch.tensor(corners, dtype=torch.float32)
        low_R2, high_R2 = corners_R4[:, :2], corners_R4[:, 2:]
        return LocateBatch(
            box_R4=torch.cat([(low_R2 + high_R2) / 2, high_R2 - low_R2], 1),
            size_R2=torch.tensor([self._size(row) for row in boxed], dtype=torch.float32),
            **self.shared_fields(samples, rows),
        )

    def _size(self, row: BoxRow) -> tuple[int, int]:
        """Width and height of the annotated image; without word of it, of the image that is there."""
        return row.size or photo_size(self.images.read(row.image))

    def _corners(self, row: BoxRow) -> Corners:
        """Return the box's corners as shares of the image's sides; of a box outside of it they hold no area."""
        (x, y, box_width, box_height), (width, height) = row.box, self._size(row)
        left, top = max(0.0, x / width), max(0.0, y / height)
        return left, top, min(1.0, (x + box_width) / width), min(1.0, (y + box_height) / height)


class LocateView(AnnotatedView[LocateConfig, LocateBatch]):
    """Phrases about parts of images."""

    source = LocateSource

    def contribute(self, objectives: ObjectiveConfig, batch: LocateBatch, encoded: EncodedView) -> Contribution:
        """Let each phrase read its image."""

        def losses(model: CCLMModel, fused_RLD: Tensor, mask_RL: Tensor) -> dict[str, RowLoss]:
            distance_R, overlap_R = box_losses(model.locate_boxes(fused_RLD, mask_RL), batch.box_R4)
            return {
                "box": RowLoss(loss_F=distance_R, weight=objectives.box_weight),
                "giou": RowLoss(loss_F=overlap_R, weight=objectives.giou_weight),
            }

        return self.reading(batch, encoded, losses)

    def predict(self, model: CCLMModel, batch: LocateBatch) -> dict[str, Tensor]:
        """Return the boxes of the phrases in pixels of the annotated images, x, y, width, height: (R, 4)."""
        box_R4 = model.locate(batch.normalised().images, batch.text.ids_BL, batch.text.mask_BL).float()
        centre_R2, extent_R2 = box_R4[:, :2], box_R4[:, 2:]
        return {"box": torch.cat([centre_R2 - extent_R2 / 2, extent_R2], 1) * batch.size_R2.repeat(1, 2)}

    def judge(self, rows: Sequence[Row], outputs: Mapping[str, Tensor]) -> list[Line]:
        """Say the box of each phrase."""
        return [
            {"id": row.id, "language": row.language, "box": list(with_box(row).box), "predicted": predicted}
            for row, predicted in zip(rows, outputs["box"].tolist(), strict=True)
        ]


def with_box(row: Row) -> BoxRow:
    """Return a row that has a box (ConfigError: it has none)."""
    if isinstance(row, BoxRow):
        return row
    raise ConfigError(where=f"row {row.id}", expected="a box", got="none", do="Give annotation files with boxes.")
