"""How fast a run is, and how much of that time it waited for data."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager


class Throughput:
    """Counts steps, samples and seconds of waiting over a window; `summary` closes it and opens the next."""

    def __init__(self, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._steps = 0
        self._waited_s = 0.0
        self._samples: Counter[str] = Counter()
        self._opened_at = clock()

    @contextmanager
    def data_wait(self) -> Iterator[None]:
        """Time the fetching of a batch: `with throughput.data_wait(): batch = next(batches)`."""
        began = self._clock()
        try:
            yield
        finally:
            self._waited_s += self._clock() - began

    def step(self, samples_by_view: Mapping[str, int]) -> None:
        """Count one step and its samples by view: of the global batch, if the rate is to be the whole job's."""
        self._steps += 1
        self._samples.update(samples_by_view)

    def restart(self) -> None:
        """Forget the window: what happened since it opened (a checkpoint, an evaluation) is not training."""
        self._steps, self._waited_s, self._opened_at = 0, 0.0, self._clock()
        self._samples.clear()

    def summary(self) -> dict[str, float]:
        """Return the window's numbers by metric name and open a new window; empty if no step was done.

        "speed/step_s": seconds per step; "speed/data_wait": share of the time spent waiting for data, 0 … 1;
        "speed/samples_per_s": all views together; "speed/VIEW_samples_per_s": each view.
        """
        elapsed_s = self._clock() - self._opened_at
        if self._steps == 0 or elapsed_s <= 0:
            return {}
        numbers = {
            "speed/step_s": elapsed_s / self._steps,
            "speed/data_wait": self._waited_s / elapsed_s,
            "speed/samples_per_s": self._samples.total() / elapsed_s,
        }
        for view, samples in sorted(self._samples.items()):
            numbers[f"speed/{view}_samples_per_s"] = samples / elapsed_s
        self.restart()
        return numbers
