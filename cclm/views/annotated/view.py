"""What views of annotated rows add to a view: they also predict, and say how right that is."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor

from cclm.model.modeling_cclm import CCLMModel
from cclm.views.annotated.options import AnnotatedConfig
from cclm.views.annotated.rows import Row
from cclm.views.images import ImageBatch
from cclm.views.rows import FusionRows
from cclm.views.view import Contribution, EncodedView, HeadLosses, LocatedRows, View

Line: TypeAlias = Mapping[str, Any]
"""What is kept of the prediction for a row."""
Settings = TypeVar("Settings", bound=AnnotatedConfig)
BatchType = TypeVar("BatchType", bound=ImageBatch)


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
