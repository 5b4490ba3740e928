"""One rank's share of a training state: what it holds, and how that goes into its file and comes back.

The engines differ in where the values lie; what is saved, and how it is read on any number of ranks, is the same. An
exponential moving average of the weights (EMA) is kept beside the optimizer's state:

    average ← average + (1 - d) · (weights - average)      after every update,  d = min(ema_decay, (1 + n) / (10 + n))

n is the number of updates before: the first weights, which are random, are forgotten quickly. Every rank averages the
fp32 master values that it holds, whatever the ZeRO stage; nothing is gathered.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cclm.distributed.collectives import Collectives
from cclm.engine.adamw import MOMENTS, adamw_state
from cclm.engine.fragments import (
    AVERAGE,
    WEIGHTS,
    Fragment,
    ShareFacts,
    ShareFile,
    aliases_of,
    buffers_of,
    share_file,
)
from cclm.engine.stored_weights import StoredState

COUNTERS = ("global_steps", "global_samples", "skipped_steps")
"""DeepSpeed's own, which its monitors and profilers read."""
SCALER = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
"""Of its dynamic loss scale, in fp16: a power of two, and when it changes next."""


class WeightAverage:
    """One rank's share of the averages, which begin as a copy of the values at the start."""

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


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Where this rank's part of one trainable parameter lies."""

    name: str
    shape: tuple[int, ...]
    start: int
    """First element of the flattened parameter that is here."""
    flat: Tensor
    """One of the tensors that the optimizer updates; this part is a slice of it, flattened."""
    offset: int
    size: int


class RankState:
    """This rank's weights, moments and averages, by the training module's names.

    `optimizer` is the AdamW that updates the shards' tensors. At ZeRO stage 0 every rank holds all parameters, below 3
    all frozen ones, and rank 0 saves them. The counters of `engine`, DeepSpeed's, come along. Averages, if `ema_decay`
    asks for them, are kept on `device`.
    """

    def __init__(
        self,
        module: nn.Module,
        ranks: Collectives,
        optimizer: torch.optim.Optimizer,
        shards: Sequence[Shard],
        *,
        ema_decay: float,
        device: torch.device,
        stage: int = 0,
        engine: Any = None,
    ) -> None:
        self.module, self.ranks, self.stage, self.engine = module, ranks, stage, engine
        self._optimizer, self._shards = optimizer, shards
        self.average = WeightAverage(ema_decay, self.fragments(WEIGHTS), device) if ema_decay > 0 else None

    def fragments(self, kind: str) -> list[Fragment]:
        """Return this rank's parts of the trainable parameters: their fp32 values ("weights"), or a moment."""
        found = []
        for one in self._shards:
            values = one.flat.detach() if kind == WEIGHTS else adamw_state(self._optimizer, one.flat)[kind]
            values = values.view(-1)[one.offset : one.offset + one.size]
            found.append(Fragment(name=one.name, shape=one.shape, start=one.start, values=values))
        return found

    def frozen(self) -> list[Fragment]:
        """Return this rank's parts of the parameters that no update moves, which have no fp32 master values."""
        found = []
        parameter: Any  # ZeRO-3 gives it attributes
        for name, parameter in self.module.named_parameters():
            if parameter.requires_grad:
                continue
            shape, start, values = tuple(parameter.shape), 0, parameter.detach().view(-1)
            if self.stage == 3:
                shape, start = tuple(parameter.ds_shape), self.ranks.rank * parameter.ds_tensor.ds_numel
                values = parameter.ds_tensor[: max(0, math.prod(shape) - start)]
            if values.numel():
                found.append(Fragment(name=name, shape=shape, start=start, values=values))
        return found

    def optimizer_states(self) -> list[dict[str, Any]]:
        """Return what AdamW keeps of each of its tensors; all of them have seen equally many updates."""
        return [
            adamw_state(self._optimizer, flat) for flat in {id(one.flat): one.flat for one in self._shards}.values()
        ]

    def _counters(self) -> dict[str, Any]:
        """Return what DeepSpeed counts: name → the object that has it."""
        if self.engine is None:
            return {}
        scaler = getattr(self.engine.optimizer, "loss_scaler", None)
        dynamic = {name: scaler for name in SCALER} if getattr(scaler, "dynamic", False) else {}
        return {name: self.engine for name in COUNTERS} | dynamic

    def update_average(self) -> None:
        """Move the averages, if there are any, towards the weights of now."""
        if self.average is not None:
            self.average.update(self.fragments(WEIGHTS))

    def share(self, client_state: Mapping[str, Any]) -> ShareFile:
        """Return this rank's file of a checkpoint; the next update changes it."""
        average, is_first = self.average, self.ranks.rank == 0
        is_writer = self.stage > 0 or is_first
        fragments = {kind: self.fragments(kind) if is_writer else [] for kind in (WEIGHTS, *MOMENTS)}
        fragments[WEIGHTS] += self.frozen() if self.stage == 3 or is_first else []
        fragments[AVERAGE] = average.averages if average is not None and is_writer else []
        facts = ShareFacts(
            world_size=self.ranks.world_size,
            aliases=aliases_of(self.module),
            updates=next((int(state["step"]) for state in self.optimizer_states()), 0),
            average_updates=0 if average is None else average.updates,
            counters={name: int(getattr(owner, name)) for name, owner in self._counters().items()},
            client_state=dict(client_state),
        )
        buffers = buffers_of(self.module) if is_first else {}
        # All else changes in an update; what a forward pass may change is copied now.
        return share_file(facts, fragments, {name: buffer.clone() for name, buffer in buffers.items()})

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
        for name, owner in self._counters().items():
            setattr(owner, name, stored.facts.counters.get(name, getattr(owner, name)))
        stored.fill_buffers(self.module)
        if self.average is not None:
            stored.fill(AVERAGE, self.average.averages)
            self.average.updates = stored.facts.average_updates
        return stored.facts.client_state
