"""The tasks of an array job: which are done, run, failed or wait, from their records and from Slurm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cclm.files.text import spans
from launch.slurm.jobs import JobNow


@dataclass(frozen=True, kw_only=True)
class ArrayTasks:
    """Every task of an array, by its number, in one of five places."""

    done: tuple[int, ...]
    """Ended with code 0."""
    running: tuple[int, ...]
    failed: tuple[int, ...]
    """Ended with another code, and nothing is queued that would repeat it."""
    waiting: tuple[int, ...]
    silent: tuple[int, ...]
    """Neither queued nor ever ended: cancelled before it began, or cut off."""

    def numbers(self) -> list[int]:
        """Return all of them."""
        return sorted((*self.done, *self.running, *self.failed, *self.waiting, *self.silent))

    def __str__(self) -> str:
        counts = {"done": self.done, "running": self.running, "failed": self.failed, "waiting": self.waiting}
        words = [f"{len(numbers)} {name}" for name, numbers in counts.items()]
        if self.silent:
            words.append(f"{len(self.silent)} without a word")
        return ", ".join(words)

    def failed_in_words(self) -> str:
        """Name what must be run again; "" if there is nothing."""
        parts = {"failed": self.failed, "without a word": self.silent}
        return "; ".join(f"{name}: {spans(numbers)}" for name, numbers in parts.items() if numbers)


def count_tasks(count: int, codes: Mapping[int, int], jobs: Sequence[JobNow]) -> ArrayTasks:
    """Sort tasks. `codes`: exit codes by task, of those that ever ended; `jobs`: what Slurm knows of them."""
    live = {job.array_task: job.state for job in jobs if not job.is_over and job.array_task is not None}
    waiting = {number for number, state in live.items() if state in ("PENDING", "REQUEUED")}
    idle = [number for number in range(count) if number not in live]
    return ArrayTasks(
        done=tuple(number for number in idle if codes.get(number) == 0),
        running=tuple(sorted(set(live) - waiting)),
        failed=tuple(number for number in idle if codes.get(number, 0) != 0),
        waiting=tuple(sorted(waiting)),
        silent=tuple(number for number in idle if number not in codes),
    )
