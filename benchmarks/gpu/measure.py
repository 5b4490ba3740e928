"""Seconds and memory of a piece of work on a device, and what the device could do at most."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

ENOUGH_S = 0.3
"""So long a measurement repeats what it measures."""
MOST_REPEATS = 30


def seconds_of(work: Callable[[], object], device: torch.device, enough_s: float = ENOUGH_S) -> float:
    """Return the median seconds of a call, after one to warm up; on a GPU by its own clock."""
    work()
    if device.type != "cuda":
        began = time.perf_counter()
        work()
        return time.perf_counter() - began
    torch.cuda.synchronize(device)
    found, began = list[float](), time.perf_counter()
    while len(found) < 3 or (time.perf_counter() - began < enough_s and len(found) < MOST_REPEATS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        work()
        end.record()
        end.synchronize()
        found.append(start.elapsed_time(end) / 1e3)
    return statistics.median(found)


def peak_mb(work: Callable[[], object], device: torch.device) -> float | None:
    """Return the megabytes that a call needs at most beyond what is there; None on a CPU."""
    work()  # what a first call takes for good: workspaces of libraries, compiled kernels
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    work()
    torch.cuda.synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - before) / 1e6


def rounded(value: float | None, digits: int = 4) -> float | None:
    """Return a number with so many significant digits."""
    return None if value is None else float(f"{value:.{digits}g}")
