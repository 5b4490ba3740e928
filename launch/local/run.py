"""Run a plan on this machine, and leave nothing behind.

    launch ──┬── rank 0 … N-1, each the leader of its own session and process group (started through shim.py)
             └── guard (guard.py), which acts only if launch itself is killed

When a rank fails, the others are told to end (TERM), and are killed after a grace time; what a rank leaves running is
killed. SIGINT, SIGTERM and SIGHUP ask the ranks to save and end, which may take its time; a second one kills them.
SIGUSR1 is passed on.
"""

from __future__ import annotations

import itertools
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path

from cclm.errors import CclmError
from cclm.files.atomic import make_folder
from cclm.files.lines import last_lines
from cclm.files.lock import holder_of, run_lock
from cclm.run import stop
from cclm.run.causes import EXIT_CODES, GOOD_ENDS, Cause, consequence
from cclm.run.signals import AGAIN_S
from cclm.run.status import RankEnd, cause_of_end
from launch.local import guard, shim
from launch.plan.job import JobPlan, RankPlan

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
ALONE_S = 5.0
"""Ranks that stop do so together. So long after the first of them the others are asked, too: one that was asked before
the ranks had met has left, and the others would wait for it."""
POLL_S = 0.5
"""A safety net only: SIGCHLD ends the wait at once."""
LOCK_NAME = ".launch.lock"
"""Of the launcher; the run that it starts has a lock of its own, which rank 0 takes."""
NUM_LAST_LINES = 20
"""So much of the first failing rank's log is shown."""


def watched_signals() -> frozenset[signal.Signals]:
    """Return the signals that a launcher waits for: not those that its parent ignored (`nohup`), which stay ignored."""
    asked = (signal.SIGUSR1, *STOP_SIGNALS)
    heard = (number for number in asked if signal.getsignal(number) is not signal.SIG_IGN)
    return frozenset({signal.SIGCHLD, *heard})


@dataclass
class Ranks:
    """The running ranks of this machine."""

    plan: JobPlan
    grace_s: float
    tell_guard: Callable[[str], None]
    alive: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)
    exits: list[RankEnd] = field(default_factory=list)
    stop_signal: int | None = None
    """The first that asked to stop."""
    asked: float = 0.0
    kill_at: float | None = None
    ask_at: float | None = None
    """When ranks that live on, though another was asked to stop and has, are asked, too."""

    def start(self, rank: RankPlan) -> None:
        """Start one rank; stdin is empty."""
        cores = ",".join(map(str, rank.cores))
        command = [sys.executable, "-I", "-S", shim.__file__, str(os.getpid()), cores, *rank.command]
        with open_log(rank.log, rank.rank, self.plan.host) if rank.log else nullcontext() as output:
            process = subprocess.Popen(
                command,
                cwd=self.plan.folder,
                env={**os.environ, **rank.environment, stop.CLEARED_VARIABLE: str(self.plan.run_folder)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT if output else None,
                start_new_session=True,
            )
        self.alive[rank.rank] = process
        self.tell_guard(f"+{process.pid}")

    def collect(self) -> None:
        """Take note of every rank that has ended, and end what it left running."""
        dead = [(rank, end) for rank, process in self.alive.items() if (end := look(process.pid)) is not None]
        # Two deaths seen in one look have lost their order; a rank that was killed cannot be the other's consequence.
        for rank, _ in sorted(dead, key=lambda item: item[1].si_code == os.CLD_EXITED):
            process = self.alive.pop(rank)
            os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
            self.tell_guard(f"-{process.pid}")
            cause, reason = cause_of_end(self.plan.run_folder, rank, code)
            self.exits.append(RankEnd(
                rank=rank, host=self.plan.host, attempt=0, code=128 - code if code < 0 else code, time=time.time(),
                cause=cause, reason=reason,
            ))  # fmt: skip
            if cause not in GOOD_ENDS:
                self.end()
            elif cause is not Cause.DONE and self.ask_at is None:
                self.ask_at = time.monotonic() + ALONE_S

    def receive(self, number: int) -> str:
        """Pass a signal on to the ranks: whatever asks to stop as TERM, which never prints a traceback. The second
        request to stop is a request to kill. Return what was done, "" for nothing."""
        name, now = signal.Signals(number).name, time.monotonic()
        if number not in STOP_SIGNALS:
            self._signal_leaders(number)
            return f"{name} is passed on."
        if self.stop_signal is not None:
            if now - self.asked < AGAIN_S:  # `timeout` signals its child, and then the child's whole group
                return ""
            self.kill_at = now
            return f"{name} again: what is left is killed."
        self._signal_leaders(signal.SIGTERM)
        self.stop_signal, self.asked = number, now
        return f"{name}: {len(self.alive)} rank(s) are asked to save and end (TERM); once more kills them."

    def enforce(self) -> None:
        """Kill whoever is still there when the grace time is over; ask whom one that has stopped has left alone."""
        if self.ask_at is not None and time.monotonic() >= self.ask_at:
            if self.stop_signal is None and self.kill_at is None:
                self._signal_leaders(signal.SIGTERM)
            self.ask_at = math.inf
        if self.kill_at is not None and time.monotonic() >= self.kill_at:
            for process in self.alive.values():
                os.killpg(process.pid, signal.SIGKILL)
            self.kill_at = None

    def end(self) -> None:
        """Tell every rank to end, and begin the grace time, unless it has begun."""
        if self.kill_at is not None:
            return
        if self.stop_signal is None:
            # A rank that was already asked to stop may be saving: it keeps its grace time, without a second TERM.
            self._signal_leaders(signal.SIGTERM)
        self.kill_at = time.monotonic() + self.grace_s

    def _signal_leaders(self, number: int) -> None:
        for process in self.alive.values():
            # Not yet reaped, so the number is still ours, even if the process has just died.
            os.kill(process.pid, number)


def look(pid: int) -> os.waitid_result | None:
    """See whether a child has ended, without reaping it: so long its number cannot go to another group."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)


def open_log(path: Path, rank: int, host: str) -> FileIO:
    """Open a rank's log for appending: what an earlier attempt of the run wrote is evidence."""
    file = path.open("ab", buffering=0)
    file.write(f"=== {time.strftime('%Y-%m-%d %H:%M:%S')} rank {rank} on {host}\n".encode())
    return file


@contextmanager
def blocked(signals: frozenset[signal.Signals]) -> Iterator[None]:
    """Keep signals pending, so that `sigtimedwait` receives them one by one and no handler interrupts anything."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        # Signals that came too late to be passed on die here, or they would end the launcher before its last words.
        while signal.sigtimedwait(signals, 0) is not None:
            continue
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def guarded() -> Iterator[Callable[[str], None]]:
    """Start the guard; yields the way to tell it of process groups."""
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", guard.__file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert process.stdin is not None
    pipe = process.stdin

    def tell(message: str) -> None:
        with suppress(BrokenPipeError):  # somebody killed the guard: the job goes on without it
            pipe.write(f"{message}\n".encode())
            pipe.flush()

    try:
        yield tell
    finally:
        process.communicate()


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
