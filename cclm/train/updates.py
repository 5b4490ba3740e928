"""A step's updates: one in the joint schedule, one for each view in the alternating one; and what steps read.

    joint       [everything]                 forward, backward, update
    alternate   [text_pair] [regions] [image_text]   three times, at the step's learning rate

A parameter that an update does not use has a gradient of zeros, not none: its moments decay and go on moving it, and it
is decayed. So it was in the published runs (3M: the image tower gets two updates a step, one of them with no gradient).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from cclm.data.batch import Batch
from cclm.data.config import DataConfig
from cclm.data.options import Schedule
from cclm.data.schedule import ViewSchedule


def updates_of(batch: Batch, schedule: Schedule) -> list[Batch]:
    """Cut a step's batch into the shares of its updates, in their order."""
    if schedule == "joint":
        return [batch]
    views = [view for view in ViewSchedule.ORDER if getattr(batch, view) is not None]
    parts = []
    for number, kept in enumerate(views):
        absent = dict.fromkeys((view for view in views if view != kept), None)
        parts.append(replace(batch, update=number, **absent))  # type: ignore[arg-type]
    return parts


def mean_metrics(parts: Sequence[Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
    """Metrics of an update from those of its micro-batches, which all have the same names: the means."""
    if len(parts) == 1:
        return parts[0]
    return {name: torch.stack([part[name] for part in parts]).mean(0) for name in parts[0]}


def merge_metrics(parts: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Metrics of a step from those of its updates: "loss" is added up, others belong to one view or are the last's."""
    merged: dict[str, Tensor] = {}
    for metrics in parts:
        loss = merged.get("loss")
        merged.update(metrics)
        if loss is not None:
            merged["loss"] = loss + metrics["loss"]
    return merged


def samples_read(config: DataConfig, schedule: ViewSchedule, steps: int) -> int:
    """Samples that all ranks have read for the first `steps` steps: pictures, and groups of translations."""
    sizes = {
        "image_text": 0 if config.image_text is None else config.image_text.batch_size,
        "regions": 0 if config.regions is None else config.regions.images_per_step,
        "text_pair": 0 if config.text_pair is None else config.text_pair.batch_size,
    }
    return sum(schedule.index(view, steps) * size for view, size in sizes.items() if size)
