"""Run a plan on this machine, and leave nothing behind.

    launch ──┬── rank 0 … N-1, each the leader of its own session and process group (started through shim.py)
             └── guard (guard.py), which acts only if launch itself is killed

When a rank fails, the others are told to end (TERM), and are killed after a grace time; what a rank leaves running is
killed. SIGINT, SIGTERM and SIGHUP ask
the ranks to save and end, which may take its time; a second one kills them. SIGUSR1 is passed on.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cclm.errors import Cause, CclmError
from cclm.files.atomic import make_folder
from cclm.files.lock import holder_of, run_lock
from cclm.run import stop
from launch.local.exit_status import JobExit, explain
from launch.local.ranks import Ranks, blocked, guarded, watched_signals
from launch.plan.job import JobPlan

POLL_S = 0.5
"""A safety net only: SIGCHLD ends the wait at once."""
LOCK_NAME = ".launch.lock"
"""Of the launcher; the run that it starts has a lock of its own, which rank 0 takes."""


@contextmanager
def folder_of_one_job(run_folder: Path) -> Iterator[None]:
    """Have a run folder to ourselves: nobody else launches or trains in it. Before that nothing may be cleared in it.
    raise CclmError if somebody does (FOLDER_LOCKED), or nothing can be written there."""
    with run_lock(run_folder, LOCK_NAME):
        holder = holder_of(run_folder)
        if holder:
            raise CclmError(
                where=str(run_folder), expected="a run folder that no other run is using",
                got=f"one that {holder} is using", do="Wait for that run, stop it, or choose another run folder.",
                cause=Cause.FOLDER_LOCKED,
            )  # fmt: skip
        yield


def run_plan(plan: JobPlan, *, say: Callable[[str], None], grace_s: float = 15.0) -> JobExit:
    """Start every rank of the plan, wait for all of them, and tell how they ended; in a folder of this job alone.

    `say` receives the launcher's own lines; `grace_s` is the time between TERM and KILL once a rank has failed. The
    calling process must have only this thread.
    """
    logs, signals = make_folder(plan.run_folder / "logs"), watched_signals()
    stop.clear(plan.run_folder)
    (logs / "plan.json").write_text(plan.to_json() + "\n", encoding="utf-8")
    with blocked(signals), guarded() as tell_guard:
        ranks = Ranks(plan=plan, grace_s=grace_s, tell_guard=tell_guard, blocked=signals)
        try:
            for rank in plan.ranks:
                ranks.start(rank)
            while ranks.alive:
                received = signal.sigtimedwait(signals, ranks.seconds_to_wait(POLL_S))
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
