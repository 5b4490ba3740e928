"""A trace of a few steps: torch's profiler on every rank, for https://ui.perfetto.dev or chrome://tracing."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

PROFILE_FOLDER = "profile"
WARM_UP = 3
"""Steps of an attempt before the first one that is recorded: allocators grow, kernels are compiled."""
MOST_ROWS = 25


class StepProfile:
    """Records steps of this attempt; the loop calls `begin_step` before each step, and `close` at the end."""

    def __init__(self, run_folder: Path, rank: int, num_steps: int) -> None:
        self._folder, self._rank, self._num_steps = run_folder / PROFILE_FOLDER, rank, num_steps
        self._begun = 0
        self._profiler: Any = None

    def begin_step(self) -> None:
        """Start before the first recorded step, and write the trace behind the last one."""
        if self._num_steps and self._begun == WARM_UP:
            activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * torch.cuda.is_available()]
            self._profiler = profile(activities=activities, acc_events=True)
            self._profiler.start()
        elif self._begun == WARM_UP + self._num_steps:
            self.close()
        self._begun += 1

    def close(self) -> None:
        """Write what was recorded: `RUN/profile/rank_N.json.gz`, and the costliest operations in `rank_N.txt`."""
        if self._profiler is None:
            return
        found, self._profiler = self._profiler, None
        found.stop()
        self._folder.mkdir(parents=True, exist_ok=True)
        trace = self._folder / f"rank_{self._rank}.json.gz"
        found.export_chrome_trace(str(trace))
        order = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        operations = found.key_averages().table(sort_by=order, row_limit=MOST_ROWS)
        trace.with_name(f"rank_{self._rank}.txt").write_text(operations, encoding="utf-8")
        if self._rank == 0:
            sys.stderr.write(
                f"note: {trace} has a trace of {self._begun - WARM_UP} steps, {trace.stem[:-5]}.txt their costs\n"
            )
