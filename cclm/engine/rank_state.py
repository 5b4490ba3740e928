"""One rank's share of a training state: what it holds, and how that goes into its file and comes back.

The engines differ in where the values lie; what is saved, and how it is read on any number of ranks, is the same. An
exponential moving average of the weights (EMA) is kept beside the optimizer's state:

    average ← average + (1 - d) · (weights - average)      after every update,  d = min(ema_decay, (1 + n) / (10 + n))

n is the number of updates before: the first weights, which are random, are forgotten quickly. Every rank averages the
fp32 master values that it holds, whatever the ZeRO stage; nothing is gathered.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cclm.distributed.collectives import Collectives
from cclm.engine.fragments import (
    AVERAGE,
    WEIGHTS,
    Fragment,
    ShareFacts,
    aliases_of,
    buffers_of,
    share_path,
    write_share,
)
from cclm.engine.optimizer import MOMENTS
from cclm.engine.stored_weights import StoredState

COUNTERS = ("global_steps", "global_samples", "skipped_steps")
"""DeepSpeed's own, which its monitors and profilers read."""


class WeightAverage:
    """One rank's share of the averages.

    Args:
        decay: d, once the run is long enough.
        fragments: the values at the start; the averages begin as a copy.
        device: where to keep them.
    """

    def __init__(self, decay: float, fragments: Iterable[Fragment], device: torch.device) -> None:
        self.decay, self.updates, self._device = decay, 0, device
        self.averages = [
            replace(one, values=one.values.detach().to(device, torch.float32, copy=True)) for one in fragments
        ]

    @torch.no_grad()
    def update(self, fragments: Sequence[Fragment]) -> None:
        """Move the averages towards the values of now (the same fragments in the same order)."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        if self.averages:
            values = [fragment.values.detach().to(self._device, torch.float32) for fragment in fragments]
            torch._foreach_lerp_([one.values for one in self.averages], values, 1.0 - decay)


class RankState(ABC):
    """This rank's weights, moments and averages, by the training module's names."""

    average: WeightAverage | None = None
    is_writer: bool = True
    """False: rank 0 holds the same of trainable parameters, and writes it."""
    writes_frozen: bool = True
    """The same for those that no update moves."""
    engine: Any = None
    """DeepSpeed's engine, whose counters come along."""

    def __init__(self, module: nn.Module, ranks: Collectives) -> None:
        self.module, self.ranks = module, ranks

    @abstractmethod
    def fragments(self, kind: str) -> list[Fragment]:
        """Return this rank's parts of the trainable parameters: their fp32 values ("weights"), or a moment."""

    @abstractmethod
    def frozen(self) -> list[Fragment]:
        """Return this rank's parts of the parameters that no update moves."""

    @abstractmethod
    def optimizer_states(self) -> list[dict[str, Any]]:
        """Return what AdamW keeps of each of its tensors; all of them have seen equally many updates."""

    def start_average(self, decay: float, device: torch.device) -> None:
        """Begin averages with the weights as they are now; none for a decay of 0."""
        self.average = WeightAverage(decay, self.fragments(WEIGHTS), device) if decay > 0 else None

    def update_average(self) -> None:
        """Move the averages, if there are any, towards the weights of now."""
        if self.average is not None:
            self.average.update(self.fragments(WEIGHTS))

    def save(self, folder: Path, client_state: Mapping[str, Any]) -> None:
        """Write this rank's file."""
        average = self.average
        fragments = {kind: self.fragments(kind) if self.is_writer else [] for kind in (WEIGHTS, *MOMENTS)}
        fragments[WEIGHTS] += self.frozen() if self.writes_frozen else []
        fragments[AVERAGE] = average.averages if average is not None and self.is_writer else []
        facts = ShareFacts(
            world_size=self.ranks.world_size,
            aliases=aliases_of(self.module),
            updates=next((int(state["step"]) for state in self.optimizer_states()), 0),
            average_updates=0 if average is None else average.updates,
            counters={} if self.engine is None else {name: int(getattr(self.engine, name)) for name in COUNTERS},
            client_state=dict(client_state),
        )
        buffers = buffers_of(self.module) if self.ranks.rank == 0 else {}
        write_share(share_path(folder, self.ranks.rank), facts, fragments, buffers)

    def load(self, folder: Path) -> dict[str, Any]:
        """Copy what any ranks and engine saved into what this rank holds, bit by bit; return the client state.

        Raises:
            CheckpointError: it does not fit the module, or cannot be read.
        """
        stored = StoredState(folder, self.ranks.rank)
        stored.fill(WEIGHTS, [*self.fragments(WEIGHTS), *self.frozen()])
        for key in MOMENTS:
            stored.fill(key, self.fragments(key))
        for state in self.optimizer_states():
            if isinstance(state["step"], Tensor):
                state["step"].fill_(stored.facts.updates)
            else:  # DeepSpeed's AdamW for the CPU
                state["step"] = stored.facts.updates
        for name, count in stored.facts.counters.items() if self.engine is not None else ():
            setattr(self.engine, name, count)
        stored.fill_buffers(self.module)
        if self.average is not None:
            stored.fill(AVERAGE, self.average.averages)
            self.average.updates = stored.facts.average_updates
        return stored.facts.client_state
