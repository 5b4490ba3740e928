"""Metrics of a run: one JSON line per step in `log.jsonl`, and the same numbers in TensorBoard.

A run that resumes at step k repeats the steps from k on; lines with step >= k of the earlier attempt are dropped first,
so a step never stands in the log twice.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cclm.files.lines import StepLines

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

LOG_NAME = "log.jsonl"
TENSORBOARD_NAME = "tensorboard"


class MetricsLog:
    """Appends numbers to `folder/log.jsonl` and `folder/tensorboard`; a disabled log touches nothing.

    Enable it on rank 0 only. `resume_step`: the first step that this process will do (0 for a new run).
    """

    def __init__(
        self,
        folder: Path,
        enabled: bool,
        resume_step: int = 0,
        *,
        tensorboard: bool = True,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._clock = clock
        self._folder, self._tensorboard = folder, tensorboard
        self._lines: StepLines | None = None
        self._board: SummaryWriter | None = None
        if enabled:
            folder.mkdir(parents=True, exist_ok=True)
            self._lines = StepLines(folder / LOG_NAME)
            self.rewind(resume_step)

    def rewind(self, step: int) -> None:
        """Forget what was written about `step` and later ones: they are done again."""
        if self._lines is None:
            return
        self._lines.truncate(step)
        if self._tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            if self._board is not None:
                self._board.close()
            # purge_step tells TensorBoard to hide what was written before for steps that will be done again.
            board = self._folder / TENSORBOARD_NAME
            self._board = SummaryWriter(str(board), purge_step=step if board.exists() else None)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append the values of one step and hand them to the operating system, so that a kill loses none."""
        if self._lines is None:
            return
        now = self._clock()
        # JSON has no NaN: a value that is not finite is written as null.
        finite = {name: float(value) if math.isfinite(value) else None for name, value in values.items()}
        self._lines.append(step, {"time": round(now, 3), "values": finite})
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, global_step=step, walltime=now)
            self._board.flush()

    def sync(self) -> None:
        """Force the log to disk (not TensorBoard's copy), before a checkpoint is complete."""
        if self._lines is not None:
            self._lines.sync()

    def close(self) -> None:
        """Writing afterwards does nothing."""
        self._lines = None
        if self._board is not None:
            self._board.close()
            self._board = None


class Throughput:
    """Counts steps, samples and seconds of waiting over a window; `summary` closes it and opens the next."""

    def __init__(self, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self.last_wait_s = 0.0
        """For the newest batch."""
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
            self.last_wait_s = self._clock() - began
            self._waited_s += self.last_wait_s

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


def read_metrics(folder: Path) -> list[tuple[int, dict[str, float]]]:
    """Return each step with its numbers by name (NaN where one was not finite), oldest first; empty without a log."""
    return [
        (line["step"], {name: math.nan if value is None else float(value) for name, value in line["values"].items()})
        for line in StepLines(folder / LOG_NAME).read()
    ]
