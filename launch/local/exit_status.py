"""How a job on this machine ended, as values, and what is said about it."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass

from cclm.files.lines import last_lines
from cclm.run.causes import EXIT_CODES, GOOD_ENDS, Cause, consequence
from cclm.run.stop import read_stopped
from launch.plan.job import JobPlan

NUM_LAST_LINES = 20
"""So much of the first failing rank's log is shown."""


@dataclass(frozen=True, kw_only=True)
class RankExit:
    """How a rank ended."""

    rank: int
    code: int
    """Exit code; -N if signal N killed it."""
    seconds: float
    """Since the start of the job."""
    cause: Cause
    reason: str = ""
    """Its own sentence; "" if it left none."""

    @property
    def shell_code(self) -> int:
        """The code as a shell would give it: 128 + N for signal N."""
        return 128 - self.code if self.code < 0 else self.code

    def __str__(self) -> str:
        how = f"killed by {signal.Signals(-self.code).name}" if self.code < 0 else f"exit code {self.code}"
        words = f" ({self.cause.value.replace('_', ' ')})" if self.cause not in (Cause.EXIT, Cause.SIGNAL) else ""
        return f"rank {self.rank}: {how}{words} after {self.seconds:.1f} s"


@dataclass(frozen=True, kw_only=True)
class JobExit:
    """How a job ended."""

    exits: tuple[RankExit, ...]
    """Every rank, in the order in which they ended."""
    stop_signal: int | None
    """The signal by which somebody asked the launcher to stop."""

    @property
    def failure(self) -> RankExit | None:
        """The rank to blame: the first that did not end well, of those that did not end because of another."""
        failed = [end for end in self.exits if end.cause not in GOOD_ENDS]
        return min(failed, key=lambda end: consequence(end.cause), default=None)

    @property
    def code(self) -> int:
        """The launcher's own exit code. Ranks that were asked to stop by a signal and had nothing to save died of TERM;
        the launcher then ends as if it had died of its own signal."""
        if self.failure is None:
            is_stopped = any(end.cause is not Cause.DONE for end in self.exits)
            return EXIT_CODES[Cause.STOPPED] if is_stopped else 0
        if self.stop_signal is not None and self.failure.cause is Cause.ENDED:
            return 128 + self.stop_signal
        return self.failure.shell_code


def explain(job: JobExit, plan: JobPlan, say: Callable[[str], None]) -> None:
    """Say how the job ended: which rank failed first, with the end of its log; or that it has stopped, and saved."""
    failure, stopped = job.failure, read_stopped(plan.run_folder)
    if failure is None:
        if job.code and stopped is not None:
            say(f"stopped, and saved at step {stopped.step} ({stopped.reason}): the same command goes on from there.")
        elif job.code:
            say("stopped; the same command goes on.")  # whether it had something to save, it says itself
        return
    if job.stop_signal is not None:
        say(f"stopped. First of {len(job.exits)} rank(s): {failure}.")
        return
    say(f"failed. First of {len(job.exits)} rank(s): {failure}.")
    log = plan.ranks[failure.rank].log
    if log is None:
        say("its output is above.")
    else:
        say(f"the end of {log}:")
        for line in last_lines(log, NUM_LAST_LINES):
            say(f"  | {line}")
    for other in job.exits:
        if other is not failure and other.cause not in {*GOOD_ENDS, Cause.ENDED}:
            say(f"then {other}.")
