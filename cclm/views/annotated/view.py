"""What views of annotated rows add to a view: they also predict, and say how right that is."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

from torch import Tensor

from cclm.model.modeling_cclm import CCLMModel
from cclm.views.annotated.options import AnnotatedConfig
from cclm.views.annotated.rows import Row
from cclm.views.images import ImageBatch
from cclm.views.view import View

Line: TypeAlias = Mapping[str, Any]
"""What is kept of the prediction for a row."""
Settings = TypeVar("Settings", bound=AnnotatedConfig)
BatchType = TypeVar("BatchType", bound=ImageBatch)


class AnnotatedView(View[Settings, BatchType]):
    """A view whose rows have right answers."""

    @abstractmethod
    def predict(self, model: CCLMModel, batch: BatchType) -> dict[str, Tensor]:
        """Compute what is predicted for the rows of a batch, by the methods that an export has, too."""

    @abstractmethod
    def judge(self, rows: Sequence[Row], outputs: Mapping[str, Tensor]) -> list[Line]:
        """Say what was predicted for each row, and what is right, as `cclm.evaluate.scores` has it."""
