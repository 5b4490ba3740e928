"""Faults for tests of training: NaN at chosen steps, in the loss, a gradient, the images, or a parameter."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch

from cclm.data.batch import Batch
from cclm.engine.protocol import Engine, Losses

Forward = Callable[[Any, Batch], Losses]
Ranks = Collection[int]


class NotFinite(torch.autograd.Function):
    """The identity, whose gradient is NaN."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return gradient * torch.nan


def bad_at(forward: Forward, is_bad: Callable[[int], bool], kind: str = "loss", ranks: Ranks = (0,)) -> Any:
    """Return an engine's `forward` with a fault: kind "loss" (NaN), "large" (a loss of 1e9), "gradient" (NaN), "input"
    (images of NaN) or "parameter" (this rank's share of one under ZeRO-3, until it is written again)."""

    def faulty(engine: Engine[Batch], batch: Batch) -> Losses:
        if engine.rank not in ranks or not is_bad(batch.step):
            return forward(engine, batch)
        if kind == "input":
            images = batch.normalised().each(lambda x: x * torch.nan if x.ndim == 4 else x)
            return forward(engine, images)
        if kind == "parameter":
            share: Any = next(engine.module.parameters())
            share.ds_tensor.data.fill_(torch.nan)
            return forward(engine, batch)
        losses = forward(engine, batch)
        if kind == "gradient":
            return losses._replace(total=NotFinite.apply(losses.total))
        factor = torch.nan if kind == "loss" else 1e9
        metrics = {name: value * factor if name == "loss" else value for name, value in losses.metrics.items()}
        return losses._replace(total=losses.total * factor, metrics=metrics)

    return faulty
