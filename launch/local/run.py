"""The local backend: carry out a plan on this machine, and leave nothing behind.

    launch ──┬── rank 0 … N-1, each the leader of its own session and process group (started through launch/shim.py)
             └── guard (launch/guard.py), which acts only if launch itself is killed

When a rank fails, the others are told to end (TERM), and are killed after a grace time. SIGINT, SIGTERM, SIGHUP and
SIGUSR1 are passed on to the ranks, which may take their time to save; a second request to stop kills them.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

from cclm.files.folders import make_folder
from cclm.run import stop
from launch.local.exit_status import NUM_LAST_LINES, Outcome, explain
from launch.local.ranks import STOP_SIGNALS, WATCHED, Ranks, blocked, guarded, last_lines
from launch.plan.job import JobPlan

POLL_S = 0.5
"""A safety net only: SIGCHLD ends the wait at once."""


def run_plan(plan: JobPlan, *, say: Callable[[str], None], grace_s: float = 15.0) -> Outcome:
    """Start every rank of the plan, wait for all of them, and tell how they ended.

    `say` receives the launcher's own lines; `grace_s` is the time between TERM and KILL once a rank has failed. The
    calling process must have only this thread.
    """
    logs = make_folder(plan.run_folder / "logs")
    stop.clear(plan.run_folder)
    (logs / "plan.json").write_text(plan.to_json() + "\n")
    with blocked(WATCHED), guarded() as tell_guard:
        ranks = Ranks(plan=plan, grace_s=grace_s, tell_guard=tell_guard)
        try:
            for rank in plan.ranks:
                ranks.start(rank)
            while ranks.alive:
                received = signal.sigtimedwait(WATCHED, ranks.seconds_to_wait(POLL_S))
                if received is not None and received.si_signo != signal.SIGCHLD:
                    _pass_on(received.si_signo, ranks, say)
                ranks.collect()
                ranks.enforce()
        finally:
            ranks.kill_at = time.monotonic()
            ranks.enforce()
    outcome = Outcome(exits=tuple(ranks.exits), first_failure=ranks.first_failure)
    failure = outcome.first_failure
    log = plan.ranks[failure.rank].log if failure else None
    last = last_lines(log, NUM_LAST_LINES) if log else []
    explain(outcome, stop_asked=ranks.stop_asked, log=log, last=last, say=say)
    return outcome


def _pass_on(number: int, ranks: Ranks, say: Callable[[str], None]) -> None:
    if number in STOP_SIGNALS and not ranks.stop_asked:
        say(f"{signal.Signals(number).name} passed on to {len(ranks.alive)} rank(s); once more kills them.")
    ranks.receive(number)
