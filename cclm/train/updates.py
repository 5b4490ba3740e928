"""A step's updates: one in the joint schedule, one for each view in the alternating one; and what steps read.

    joint       [everything]      forward, backward, update
    alternate   [view] [view] …   once for each, at the step's learning rate

A parameter that an update does not use has a gradient of zeros, not none: its moments decay and go on moving it, and it
is decayed. So it was in the published runs (3M: the image tower gets two updates a step, one of them with no gradient).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from cclm.data.batch import Batch
from cclm.data.config import Views
from cclm.data.options import Schedule
from cclm.data.schedule import ViewSchedule
from cclm.engine.protocol import Engine, StepStatistics
from cclm.track.sections import NO_CLOCK, SectionClock
from cclm.train.step import CrossViewTraining


class OnTheWay:
    """Scalars that a device is still computing, on their way to the host; reading them waits for nothing else.

    `.item()` would wait for everything that the device has been given, so also for what was given later.
    """

    def __init__(self, scalars: Sequence[Tensor]) -> None:
        self._scalars = [scalar.to("cpu", non_blocking=True) for scalar in scalars]  # from a GPU: into pinned memory
        self._copied: Any = None
        if any(scalar.is_cuda for scalar in scalars):
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()

    def read(self) -> list[float]:
        """Return them when they are there."""
        if self._copied is not None:
            self._copied.synchronize()
        return [float(scalar) for scalar in self._scalars]


@dataclass(frozen=True, kw_only=True)
class SkippedUpdate:
    """An update that was left out."""

    number: int
    """Which of its step's, counted from 0."""
    views: Sequence[str]
    bad_gradients: Sequence[str]
    """As `StepStatistics` has them."""


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What the updates of one step did on this rank."""

    metrics: Mapping[str, Tensor]
    """Of the step; their means over the ranks are those of the global batch."""
    statistics: StepStatistics
    """Of the last update."""
    grad_norms: OnTheWay
    """Of each update."""
    applied: Sequence[bool] = (True,)
    skipped: Sequence[SkippedUpdate] = ()


def update(
    engine: Engine[Batch],
    batch: Batch,
    schedule: Schedule,
    is_asked: Callable[[], bool] = lambda: False,
    clock: SectionClock = NO_CLOCK,
    *,
    max_loss: float = math.inf,
    max_norm: Callable[[int, int], float] = lambda step, number: math.inf,
) -> StepResult | None:
    """Do a step: forward and backward of every micro-batch, then the update, for each of the step's updates.

    `is_asked` is called between micro-batches, on every rank alike, as long as no update is made: when it says yes the
    step is abandoned, and None returned. An update is skipped if its loss is not below `max_loss`, or its gradient norm
    above `max_norm` (of the step, and its number there).
    """
    metrics, norms = list[Mapping[str, Tensor]](), list[Tensor]()
    applied, skipped = list[bool](), list[SkippedUpdate]()
    for parts in zip(*(updates_of(part, schedule) for part in batch.parts), strict=True):
        clock.enter("losses")
        found = list[Mapping[str, Tensor]]()
        for part in with_features_of_all(engine, parts):
            if found and not norms and is_asked():
                engine.abandon_step()
                return None
            losses = engine.forward(part)  # it and its backward pass say themselves where they are
            engine.backward(losses._replace(total=guarded(losses.total, max_loss)))
            found.append(losses.metrics)
            clock.enter("losses")
        number = len(norms)
        clock.enter("optimizer")
        statistics = engine.update(batch.step, max_norm(batch.step, number))
        applied.append(statistics.was_applied)
        if not statistics.was_applied:
            bad = SkippedUpdate(number=number, views=tuple(parts[0].views), bad_gradients=statistics.bad_gradients)
            skipped.append(bad)
        metrics.append({name: torch.stack([part[name] for part in found]).mean(0) for name in found[0]})
        norms.append(statistics.grad_norm)
    return StepResult(
        metrics=merge_metrics(metrics),
        statistics=statistics,
        grad_norms=OnTheWay(norms),
        applied=applied,
        skipped=skipped,
    )


def guarded(total: Tensor, max_loss: float) -> Tensor:
    """Return a loss whose gradient is not finite if the loss is not below `max_loss`; else it is the same bit by bit.

    So a loss on one rank that is out of range reaches every rank as a gradient norm that is not finite, and the host
    does not wait for the loss.
    """
    return total * torch.where(total.detach().abs() < max_loss, 1.0, torch.nan).to(total.dtype)


def with_features_of_all(engine: Engine[Batch], parts: Sequence[Batch]) -> Sequence[Batch]:
    """Let the micro-batches of an update know each other's features: a pass of the encoders without gradient.

    Each then computes its own rows of the loss of the whole batch (GradCache, arXiv 2101.06983).
    """
    if len(parts) == 1:
        return parts
    module = engine.module
    assert isinstance(module, CrossViewTraining), "only this module can be asked what others need"
    known = [engine.survey(part) for part in parts]
    shared = module.sharing(parts[0]).share(known)
    return [replace(part, shared=shared) for part in parts]


def updates_of(batch: Batch, schedule: Schedule) -> list[Batch]:
    """Cut a step's batch into the shares of its updates, in their order: from the last view to the first."""
    if schedule == "joint":
        return [batch]
    names = reversed(list(batch.views))
    return [replace(batch, update=number, views={name: batch.views[name]}) for number, name in enumerate(names)]


def merge_metrics(parts: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Metrics of a step from those of its updates: "loss" is added up, others belong to one view or are the last's."""
    merged: dict[str, Tensor] = {}
    for metrics in parts:
        loss = merged.get("loss")
        merged.update(metrics)
        if loss is not None:
            merged["loss"] = loss + metrics["loss"]
    return merged


def samples_read(views: Views, schedule: ViewSchedule, steps: int) -> int:
    """Return how many samples all ranks have read for the first `steps` steps."""
    return sum(schedule.index(name, steps) * view.samples_per_step for name, view in views.items())
