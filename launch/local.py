"""The local backend: carry out a plan on this machine, and leave nothing behind.

    launch ──┬── rank 0 … N-1, each the leader of its own session and process group (started through launch/shim.py)
             └── guard (launch/guard.py), which acts only if launch itself is killed

When a rank fails, the others are told to end (TERM), and are killed after a grace time. SIGINT, SIGTERM, SIGHUP and
SIGUSR1 are passed on to the ranks, which may take their time to save; a second request to stop kills them.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cclm.track import stop
from cclm.track.folders import make_folder
from launch import guard, shim
from launch.plan import JobPlan, RankPlan

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
WATCHED = frozenset({signal.SIGCHLD, signal.SIGUSR1, *STOP_SIGNALS})
POLL_S = 0.5
"""A safety net only: SIGCHLD ends the wait at once."""


@dataclass(frozen=True, kw_only=True)
class RankExit:
    """How a rank ended."""

    rank: int
    code: int
    """Exit code; -N if signal N killed it."""
    seconds: float
    """Since the start of the job."""

    @property
    def shell_code(self) -> int:
        """The code as a shell would give it: 128 + N for signal N."""
        return 128 - self.code if self.code < 0 else self.code

    def __str__(self) -> str:
        how = f"killed by {signal.Signals(-self.code).name}" if self.code < 0 else f"exit code {self.code}"
        return f"rank {self.rank}: {how} after {self.seconds:.1f} s"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a job ended."""

    exits: tuple[RankExit, ...]
    """Every rank, in the order in which they ended."""
    first_failure: RankExit | None
    """The first that did not end with code 0."""

    @property
    def code(self) -> int:
        """The launcher's own exit code."""
        return self.first_failure.shell_code if self.first_failure else 0


@dataclass
class _Job:
    """The running job."""

    plan: JobPlan
    say: Callable[[str], None]
    grace_s: float
    tell_guard: Callable[[str], None]
    began: float = field(default_factory=time.monotonic)
    alive: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)
    exits: list[RankExit] = field(default_factory=list)
    first_failure: RankExit | None = None
    stop_asked: bool = False
    kill_at: float | None = None

    def start(self, rank: RankPlan) -> None:
        cores = ",".join(map(str, rank.cores))
        command = [sys.executable, "-I", "-S", shim.__file__, str(os.getpid()), cores, *rank.command]
        with ExitStack() as stack:
            output = stack.enter_context(_open_log(rank.log, rank)) if rank.log else None
            process = subprocess.Popen(
                command,
                cwd=self.plan.folder,
                env={**os.environ, **rank.environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT if output else None,
                start_new_session=True,
            )
        self.alive[rank.rank] = process
        self.tell_guard(f"+{process.pid}")

    def collect(self) -> None:
        """Take note of every rank that has ended, and end what it left running."""
        dead = [(rank, end) for rank, process in self.alive.items() if (end := _look(process.pid)) is not None]
        # Two deaths seen in one look have lost their order; a rank that was killed cannot be the other's consequence.
        for rank, _ in sorted(dead, key=lambda item: item[1].si_code == os.CLD_EXITED):
            process = self.alive.pop(rank)
            os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
            self.tell_guard(f"-{process.pid}")
            self.exits.append(RankExit(rank=rank, code=code, seconds=time.monotonic() - self.began))
            if code != 0 and self.first_failure is None:
                self._fail(self.exits[-1])

    def receive(self, number: int) -> None:
        """Pass a signal on to the ranks; the second request to stop is a request to kill."""
        if number in STOP_SIGNALS:
            if self.stop_asked:
                self.kill_at = time.monotonic()
            else:
                self.say(f"{signal.Signals(number).name} passed on to {len(self.alive)} rank(s); once more kills them.")
            self.stop_asked = True
        self._signal_leaders(number)

    def enforce(self) -> None:
        """Kill whoever is still there when the grace time is over."""
        if self.kill_at is not None and time.monotonic() >= self.kill_at:
            for process in self.alive.values():
                os.killpg(process.pid, signal.SIGKILL)
            self.kill_at = None

    def seconds_to_wait(self) -> float:
        return POLL_S if self.kill_at is None else min(POLL_S, max(self.kill_at - time.monotonic(), 0.0))

    def _fail(self, failure: RankExit) -> None:
        self.first_failure = failure
        if not self.stop_asked:
            # A rank that was already asked to stop may be saving: it keeps its grace time, without a second TERM.
            self._signal_leaders(signal.SIGTERM)
        self.kill_at = time.monotonic() + self.grace_s

    def _signal_leaders(self, number: int) -> None:
        for process in self.alive.values():
            # Not yet reaped, so the number is still ours, even if the process has just died.
            os.kill(process.pid, number)


def _look(pid: int) -> os.waitid_result | None:
    """See whether a child has ended, without reaping it: so long its number cannot go to a stranger's group."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)


def run_plan(plan: JobPlan, *, say: Callable[[str], None], grace_s: float = 15.0) -> Outcome:
    """Start every rank of the plan, wait for all of them, and tell how they ended.

    `say` receives the launcher's own lines; `grace_s` is the time between TERM and KILL once a rank has failed. The
    calling process must have only this thread.
    """
    logs = make_folder(plan.run_folder / "logs")
    stop.clear(plan.run_folder)
    (logs / "plan.json").write_text(plan.to_json() + "\n")
    with _blocked(WATCHED), _guard() as tell_guard:
        job = _Job(plan=plan, say=say, grace_s=grace_s, tell_guard=tell_guard)
        try:
            for rank in plan.ranks:
                job.start(rank)
            while job.alive:
                received = signal.sigtimedwait(WATCHED, job.seconds_to_wait())
                if received is not None and received.si_signo != signal.SIGCHLD:
                    job.receive(received.si_signo)
                job.collect()
                job.enforce()
        finally:
            job.kill_at = time.monotonic()
            job.enforce()
    _explain(plan, job)
    return Outcome(exits=tuple(job.exits), first_failure=job.first_failure)


def _explain(plan: JobPlan, job: _Job) -> None:
    """Say which rank failed first, and show the end of its log; ranks that were asked to stop have not failed."""
    failure = job.first_failure
    if failure is None:
        return
    if job.stop_asked:
        job.say(f"stopped. First of {len(plan.ranks)} rank(s): {failure}.")
        return
    job.say(f"failed. First of {len(plan.ranks)} rank(s): {failure}.")
    log = plan.ranks[failure.rank].log
    if log is None:
        job.say("its output is above.")
    else:
        job.say(f"the end of {log}:")
        for line in last_lines(log, 20):
            job.say(f"  | {line}")
    for other in job.exits:
        if other is not failure and other.code not in (0, -signal.SIGTERM):
            job.say(f"then {other}.")


def last_lines(path: Path, count: int) -> list[str]:
    """Return the last `count` lines of a log; only its last 64 KiB are read."""
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - 65536, 0))
        return file.read().decode("utf-8", "replace").splitlines()[-count:]


@contextmanager
def _open_log(path: Path, rank: RankPlan) -> Iterator[int]:
    """Open a rank's log for appending: what an earlier life of the run wrote is evidence."""
    with path.open("ab", buffering=0) as file:
        file.write(f"=== {time.strftime('%Y-%m-%d %H:%M:%S')} rank {rank.rank} on {rank.host}\n".encode())
        yield file.fileno()


@contextmanager
def _blocked(signals: frozenset[signal.Signals]) -> Iterator[None]:
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
def _guard() -> Iterator[Callable[[str], None]]:
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
        try:
            pipe.write(f"{message}\n".encode())
            pipe.flush()
        except BrokenPipeError:
            return  # somebody killed the guard: the job goes on without it

    try:
        yield tell
    finally:
        process.communicate()
