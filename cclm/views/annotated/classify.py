"""The classify view: a text about one image, or about several, is of one of several classes (XVNLI, NLVR2, MaRVL).

| memory | query | head |
|---|---|---|
| image, or images | text | classes |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn import functional

from cclm.annotations.rows import ClassifyRow
from cclm.data.collate import int64
from cclm.errors import ConfigError
from cclm.model.modeling_cclm import CCLMModel
from cclm.objectives.options import ObjectiveConfig
from cclm.views.annotated.options import ClassifyConfig
from cclm.views.annotated.rows import Row
from cclm.views.annotated.source import AnnotatedSource, AnnotatedView, Line, RowSample
from cclm.views.images import ImageBatch
from cclm.views.view import Contribution, EncodedView, RowLoss


@dataclass(frozen=True, kw_only=True)
class ClassifyBatch(ImageBatch):
    """R rows; their images stand first image by first image, then second by second."""

    label_R: Int[Tensor, " r"]


class ClassifySource(AnnotatedSource[ClassifyConfig, ClassifyBatch]):
    """Rows with a class."""

    stream_bits = 1 << 60
    sample_purpose = 17

    def collate(self, samples: Sequence[RowSample], rows: range) -> ClassifyBatch:
        """Make a batch of samples (ConfigError: a row without a class)."""
        labels = int64([label_of(sample.row) for sample in samples])
        return ClassifyBatch(label_R=labels, **self.shared_fields(samples, rows))


class ClassifyView(AnnotatedView[ClassifyConfig, ClassifyBatch]):
    """Images and a text of one of several classes."""

    source = ClassifySource

    def contribute(self, objectives: ObjectiveConfig, batch: ClassifyBatch, encoded: EncodedView) -> Contribution:
        """Let each text read its image, or its images."""
        label_R = batch.label_R

        def losses(model: CCLMModel, fused_FLD: Tensor, mask_FL: Tensor) -> dict[str, RowLoss]:
            fused = fused_FLD.chunk(model.config.class_images)
            logits_RC = model.class_logits(fused, mask_FL[: len(label_R)]).float()
            is_right_R = (logits_RC.detach().argmax(1) == label_R).float()
            return {
                "classes": RowLoss(loss_F=functional.cross_entropy(logits_RC, label_R, reduction="none"), weight=1.0),
                "accuracy": RowLoss(loss_F=is_right_R, weight=None),
            }

        return self.reading(batch, encoded, losses)

    def predict(self, model: CCLMModel, batch: ClassifyBatch) -> dict[str, Tensor]:
        """Return the probabilities of the classes of each row, {"probability": (R, C)}."""
        number, images = self.config.images_per_row, batch.normalised().images
        pixels = images if number == 1 else torch.stack(images.chunk(number), 1)
        logits_RC: Tensor = model.classify(pixels, batch.text.ids_BL, batch.text.mask_BL)
        return {"probability": logits_RC.float().softmax(-1)}

    def judge(self, rows: Sequence[Row], outputs: Mapping[str, Tensor]) -> list[Line]:
        """Say the likeliest class of each row."""
        score_R, class_R = outputs["probability"].max(1)
        return [
            {"id": row.id, "language": row.language, "label": label_of(row), "predicted": predicted, "score": score}
            for row, predicted, score in zip(rows, class_R.tolist(), score_R.tolist(), strict=True)
        ]


def label_of(row: Row) -> int:
    """Return the class of a row (ConfigError: it has none)."""
    label = row.label if isinstance(row, ClassifyRow) else None
    if label is None:
        raise ConfigError(
            where=f"row {row.id}", expected="a class", got="none", do="Give annotation files with classes."
        )
    return label
