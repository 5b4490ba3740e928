"""Means of a run's values over the steps between two lines of its log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from cclm.engine.protocol import Engine


class WindowMeans:
    """Means over the steps since the last regular line; the same whether or not a run was stopped in between.

    Lines at `track.every_steps` and at regular checkpoints close a window. One that is written because somebody asked
    for a checkpoint, or to stop, tells what the window holds so far and leaves it open: the checkpoint has its sums.
    They are float64, in which sums of some float32 values are exact, in whatever order. Bad steps are left out, unless
    there was no other.
    """

    def __init__(self) -> None:
        self.skipped = 0
        """Updates that were skipped."""
        self._local: dict[tuple[str, ...], tuple[Tensor, int]] = {}
        """By the names of a step's values: their sums on this rank, on the device; and of how many steps."""
        self._sums: dict[str, float] = {}
        """As means over the ranks, up to the newest line."""
        self._counts: dict[str, int] = {}
        self._bad: Mapping[str, Tensor] | None = None
        """Values of the newest bad step."""

    def add(self, metrics: Mapping[str, Tensor], *, is_good: bool) -> None:
        """Add a step's scalars of this rank; the host does not wait for them."""
        if not is_good:
            self._bad = metrics
            return
        names = tuple(metrics)
        values = torch.stack([metrics[name].detach().to(torch.float64).reshape(()) for name in names])
        total, count = self._local.get(names, (None, 0))
        self._local[names] = (values if total is None else total + values, count + 1)

    def add_value(self, name: str, value: float) -> None:
        """Add a step's number that is the same on every rank."""
        self._sums[name] = self._sums.get(name, 0.0) + value
        self._counts[name] = self._counts.get(name, 0) + 1

    def means(self, engine: Engine[Any], beside: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the means so far, and the means over the ranks of other scalars `beside` them. One collective."""
        local = dict[str, Tensor]()
        for names, (total, count) in self._local.items():
            for name, value in zip(names, total, strict=True):
                local[name] = local[name] + value if name in local else value
                self._counts[name] = self._counts.get(name, 0) + count
        self._local.clear()
        if not local and not self._counts and self._bad is not None:
            return engine.reduce_mean({**self._bad, **beside})
        found = engine.reduce_mean({**local, **beside})
        for name in local:
            self._sums[name] = self._sums.get(name, 0.0) + found[name]
        means = {name: total / self._counts[name] for name, total in self._sums.items()}
        return means | {name: found[name] for name in beside}

    def close(self) -> None:
        """Begin a new window."""
        self.skipped, self._bad = 0, None
        for of_window in (self._local, self._sums, self._counts):
            of_window.clear()

    def state(self) -> dict[str, Any]:
        """Return what belongs into a checkpoint, as of the last call of `means`."""
        return {"skipped": self.skipped, "sums": dict(self._sums), "counts": dict(self._counts)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on with the window of a checkpoint (of an older version: with a new one)."""
        self.close()
        self.skipped = int(state.get("skipped", 0))
        self._sums |= {name: float(value) for name, value in state.get("sums", {}).items()}
        self._counts |= {name: int(value) for name, value in state.get("counts", {}).items()}
