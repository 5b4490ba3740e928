"""An exponential moving average of the weights (EMA), kept by the engine beside its optimizer state.

    average ← average + (1 - d) · (weights - average)      after every update,  d = min(ema_decay, (1 + n) / (10 + n))

n is the number of updates before: the first weights, which are random, are forgotten quickly. Every rank averages the
fp32 master values that it holds, whatever the ZeRO stage; nothing is gathered. In a checkpoint the averages are
fragments of the kind "average" (`cclm.engine.fragments`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import torch

from cclm.engine.fragments import WEIGHTS, Fragment


class WeightAverage:
    """One rank's share of the averages.

    Args:
        decay: d, once the run is long enough.
        fragments: the values at the start; the averages begin as a copy.
        device: where to keep them.
    """

    def __init__(self, decay: float, fragments: Iterable[Fragment], device: torch.device) -> None:
        self.decay, self.updates = decay, 0
        self.averages = [
            replace(fragment, values=fragment.values.detach().to(device, torch.float32, copy=True))
            for fragment in fragments
        ]

    @torch.no_grad()
    def update(self, fragments: Sequence[Fragment]) -> None:
        """Move the averages towards the values of now (the same fragments in the same order)."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        averages = [average.values for average in self.averages]
        if averages:
            device = averages[0].device
            values = [fragment.values.detach().to(device, torch.float32) for fragment in fragments]
            torch._foreach_lerp_(averages, values, 1.0 - decay)


def start_average(
    decay: float, fragments: Callable[[str], list[Fragment]], device: torch.device
) -> WeightAverage | None:
    """Return averages that begin with the fragments of the weights as they are now; None for a decay of 0."""
    return WeightAverage(decay, fragments(WEIGHTS), device) if decay > 0 else None
