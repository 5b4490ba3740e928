"""Run a plan on this machine, and leave nothing behind.

    launch ──┬── rank 0 … N-1, each the leader of its own session and process group (started through shim.py)
             └── guard (guard.py), which acts only if launch itself is killed

When a rank fails, the others are told to end (TERM), and are killed after a grace time; what a rank leaves running is
killed. SIGINT, SIGTERM and SIGHUP ask the ranks to save and end, which may take its time; a second one kills them.
SIGUSR1 is passed on.
"""

from __future__ import annotations

import itertools
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from cclm.errors import CclmError
from cclm.files.atomic import make_folder
from cclm.files.lines import last_lines
from cclm.files.lock import holder_of, run_lock
from cclm.run import stop
from cclm.run.causes import EXIT_CODES, GOOD_ENDS, Cause, consequence
from cclm.run.status import RankEnd
from launch.local.ranks import Ranks, blocked, guarded, watched_signals
from launch.plan.job import JobPlan

POLL_S = 0.5
"""A safety net only: SIGCHLD ends the wait at once."""
LOCK_NAME = ".launch.lock"
"""Of the launcher; the run that it starts has a lock of its own, which rank 0 takes."""
NUM_LAST_LINES = 20
"""So much of the first failing rank's log is shown."""


@dataclass(frozen=True, kw_only=True)
class JobExit:
    """How a job ended."""

    exits: tuple[RankEnd, ...]
    """Every rank, in the order in which they ended."""
    stop_signal: int | None
    """The signal by which somebody asked the launcher to stop."""

    @property
    def failure(self) -> RankEnd | None:
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
        return self.failure.code


def explain(job: JobExit, plan: JobPlan, say: Callable[[str], None]) -> None:
    """Say how the job ended: which rank failed first, with the end of its log; or that it has stopped, and saved."""
    failure, stopped = job.failure, stop.read_stopped(plan.run_folder)
    if failure is None:
        if job.code and stopped is not None:
            say(f"stopped, and saved at step {stopped.step} ({stopped.reason}): the same command goes on from there.")
        elif job.code:
            say("stopped; the same command goes on.")  # whether it had something to save, it says itself
        return
    say(f"{'failed' if job.stop_signal is None else 'stopped'}. First of {len(job.exits)} rank(s): {failure}.")
    if job.stop_signal is not None:
        return
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


@contextmanager
def own_folder(run_folder: Path, *, is_named: bool = True) -> Iterator[Path]:
    """Have a run folder to ourselves: nobody else launches or trains in it. Before that nothing may be cleared in it.
    Jobs that name none get RUN-2, RUN-3, …; for others raise CclmError if somebody does (FOLDER_LOCKED), or nothing can
    be written there."""
    for number in itertools.count(1):
        folder = run_folder if number == 1 else run_folder.with_name(f"{run_folder.name}-{number}")
        with ExitStack() as stack:
            try:
                stack.enter_context(run_lock(folder, LOCK_NAME))
                if holder := holder_of(folder):
                    raise CclmError(
                        where=str(folder), expected="a run folder that no other run is using",
                        got=f"one that {holder} is using", cause=Cause.FOLDER_LOCKED,
                        do="Wait for that run, stop it, or choose another run folder.",
                    )  # fmt: skip
            except CclmError as error:
                if error.cause is not Cause.FOLDER_LOCKED or is_named:
                    raise
                continue
            yield folder
            return


def run_plan(plan: JobPlan, *, say: Callable[[str], None], grace_s: float = 15.0) -> JobExit:
    """Start every rank of the plan, wait for all of them, and tell how they ended; in a folder of this job alone. `say`
    receives the launcher's own lines; `grace_s` is the time between TERM and KILL once a rank has failed. The calling
    process must have only this thread."""
    logs, signals = make_folder(plan.run_folder / "logs"), watched_signals()
    stop.clear(plan.run_folder)
    (logs / "plan.json").write_text(plan.to_json() + "\n", encoding="utf-8")
    with blocked(signals), guarded() as tell_guard:
        ranks = Ranks(plan=plan, grace_s=grace_s, tell_guard=tell_guard)
        try:
            for rank in plan.ranks:
                ranks.start(rank)
            while ranks.alive:
                left_s = POLL_S if ranks.kill_at is None else max(ranks.kill_at - time.monotonic(), 0.0)
                received = signal.sigtimedwait(signals, min(left_s, POLL_S))
                number = received.si_signo if received is not None else signal.SIGCHLD
                # Interrupted as the time is over, it returns memory that nobody has filled.
                if number in signals and number != signal.SIGCHLD and (done := ranks.receive(number)):
                    say(done)
                ranks.collect()
                ranks.enforce()
        finally:
            ranks.kill_at = time.monotonic()
            ranks.enforce()
    job = JobExit(exits=tuple(ranks.exits), stop_signal=ranks.stop_signal)
    explain(job, plan, say)
    return job
