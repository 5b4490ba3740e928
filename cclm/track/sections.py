"""Where the time of a run goes: its seconds by section, on the clock of the device that computes.

    data ─ communication ─ text ─ vision ─ losses ─ fusion ─ losses          forward
         optimizer ─ text ─ vision ─ losses ─ fusion ─ losses ◄┘             backward, in the other order

The host says where a section begins; on a GPU an event in its stream marks the place, so nobody waits, and what the GPU
waits for (a batch, say) is in the section in which it waits. In the backward pass tensors say it: autograd goes from
the newest operation to the oldest one, so everything between two marks belongs to the section of the first.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

OTHER = "other"
"""What is in no section."""


class SectionClock:
    """Adds up seconds by section; one that is not enabled does nothing."""

    def __init__(
        self,
        device: torch.device | None = None,
        *,
        enabled: bool = True,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._enabled, self._clock = enabled, clock
        self._stream: Any = torch.cuda.current_stream(device) if device is not None and device.type == "cuda" else None
        self._section = OTHER
        self._seconds: dict[str, float] = {}
        self._open: list[tuple[str, Any]] = [(OTHER, self._now())] if enabled else []
        """Sections that began, oldest first, and when; more than one while a GPU has not come there yet."""

    def enter(self, section: str) -> str:
        """Begin a section, which ends the one before; return that one."""
        before, self._section = self._section, section
        if self._enabled and section != before:
            self._open.append((section, self._now()))
            self._add_up(wait=False)
        return before

    @contextmanager
    def inside(self, section: str) -> Iterator[None]:
        """Be in a section for the length of the `with` block."""
        before = self.enter(section)
        try:
            yield
        finally:
            self.enter(before)

    def on_backward(self, x: Tensor, section: str) -> Tensor:
        """Return `x`; a section begins when the backward pass comes to it. Values and gradients stay as they are."""
        if not (self._enabled and x.requires_grad):
            return x
        marked: Tensor = _Mark.apply(x, self, section)  # type: ignore[no-untyped-call]
        return marked

    def seconds(self) -> dict[str, float]:
        """Return the seconds by section since the last call; on a GPU it waits until that has come here."""
        if not self._enabled:
            return {}
        self._open.append((self._section, self._now()))
        self._add_up(wait=True)
        found, self._seconds = self._seconds, {}
        return found

    def _now(self) -> Any:
        if self._stream is None:
            return self._clock()
        event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(self._stream)
        return event

    def _add_up(self, *, wait: bool) -> None:
        if wait and self._stream is not None:
            self._open[-1][1].synchronize()
        while len(self._open) > 1 and (self._stream is None or self._open[1][1].query()):
            (section, began), (_, ended) = self._open[:2]
            took = ended - began if self._stream is None else began.elapsed_time(ended) / 1e3
            self._seconds[section] = self._seconds.get(section, 0.0) + took
            del self._open[0]


class _Mark(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, clock: SectionClock, section: str) -> Tensor:
        ctx.clock, ctx.section = clock, section
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        ctx.clock.enter(ctx.section)
        return gradient, None, None


NO_CLOCK = SectionClock(enabled=False)
"""For who does not ask where the time goes."""
