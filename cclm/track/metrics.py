"""Metrics of a run: one JSON line per step in `log.jsonl`, and the same numbers wherever else they are wanted.

A run that resumes at step k repeats the steps from k on; lines with step >= k of the earlier attempt are dropped first.
An evaluation has a line of its own, of the step that it came after.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from cclm.files.lines import StepLines
from cclm.run.progress import LOG_NAME, log_lines
from cclm.track.trackers import Tracker


class MetricsLog:
    """Appends numbers to `folder/log.jsonl`, and passes them on to `trackers`; a disabled log (ranks other than 0)
    touches nothing. `resume_step`: the first step that this process will do."""

    def __init__(
        self,
        folder: Path,
        enabled: bool,
        resume_step: int = 0,
        *,
        trackers: Sequence[Tracker] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._clock, self._trackers = clock, trackers
        self._lines: StepLines | None = None
        if enabled:
            folder.mkdir(parents=True, exist_ok=True)
            self._lines = StepLines(folder / LOG_NAME)
            self.rewind(resume_step)

    def rewind(self, step: int) -> None:
        """Forget what was written about `step` and later ones: they are done again."""
        if self._lines is None:
            return
        self._lines.truncate(step)
        for tracker in self._trackers:
            tracker.rewind(step)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append the values of one step and hand them to the operating system, so that a kill loses none."""
        if self._lines is None:
            return
        now = self._clock()
        # JSON has no NaN: a value that is not finite is written as null.
        finite = {name: float(value) if math.isfinite(value) else None for name, value in values.items()}
        self._lines.append(step, {"time": round(now, 3), "values": finite})
        for tracker in self._trackers:
            tracker.write(step, {name: float(value) for name, value in values.items()}, now)

    def sync(self) -> None:
        """Force the log to disk (not what trackers keep), before a checkpoint is complete."""
        if self._lines is not None:
            self._lines.sync()

    def close(self) -> None:
        """Writing afterwards does nothing."""
        if self._lines is not None:
            self._lines = None
            for tracker in self._trackers:
                tracker.close()


class Throughput:
    """Counts steps and samples over a window; `summary` closes it and opens the next."""

    def __init__(self, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._steps = 0
        self._samples: Counter[str] = Counter()
        self._opened_at = clock()

    def step(self, samples_by_view: Mapping[str, int]) -> None:
        """Count one step and its samples by view: of the global batch, if the rate is to be the whole job's."""
        self._steps += 1
        self._samples.update(samples_by_view)

    def restart(self) -> None:
        """Forget the window: what happened since it opened (a checkpoint, an evaluation) is not training."""
        self._steps, self._opened_at = 0, self._clock()
        self._samples.clear()

    @property
    def elapsed_s(self) -> float:
        """Seconds since the window opened."""
        return self._clock() - self._opened_at

    def summary(self) -> dict[str, float]:
        """Return the window's numbers ("speed/step_s", "speed/samples_per_s" of all views, "speed/VIEW_samples_per_s")
        and open a new window; empty if no step was done."""
        elapsed_s = self.elapsed_s
        if self._steps == 0 or elapsed_s <= 0:
            return {}
        numbers = {
            "speed/step_s": elapsed_s / self._steps,
            "speed/samples_per_s": self._samples.total() / elapsed_s,
        }
        for view, samples in sorted(self._samples.items()):
            numbers[f"speed/{view}_samples_per_s"] = samples / elapsed_s
        self.restart()
        return numbers


def read_metrics(folder: Path) -> list[tuple[int, dict[str, float]]]:
    """Return each step with its numbers by name (NaN where one was not finite), oldest first; empty without a log."""
    return [
        (line["step"], {name: math.nan if value is None else float(value) for name, value in line["values"].items()})
        for line in log_lines(folder)
    ]
