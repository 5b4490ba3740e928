"""The ranks of one machine, started, watched and ended.

Each rank is the leader of its own session and process group (started through launch/shim.py). When one fails, the
others are told to end (TERM), and are killed after a grace time; what a rank leaves running is killed.
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

from launch.local import guard, shim
from launch.local.exit_status import RankExit
from launch.plan.job import JobPlan, RankPlan

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
WATCHED = frozenset({signal.SIGCHLD, signal.SIGUSR1, *STOP_SIGNALS})


@dataclass
class Ranks:
    """The running ranks of this machine."""

    plan: JobPlan
    grace_s: float
    tell_guard: Callable[[str], None]
    began: float = field(default_factory=time.monotonic)
    alive: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)
    exits: list[RankExit] = field(default_factory=list)
    first_failure: RankExit | None = None
    stop_asked: bool = False
    kill_at: float | None = None

    def start(self, rank: RankPlan) -> None:
        """Start one rank; stdin is empty."""
        cores = ",".join(map(str, rank.cores))
        command = [sys.executable, "-I", "-S", shim.__file__, str(os.getpid()), cores, *rank.command]
        with ExitStack() as stack:
            output = stack.enter_context(open_log(rank.log, rank.rank, self.plan.host)) if rank.log else None
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
        dead = [(rank, end) for rank, process in self.alive.items() if (end := look(process.pid)) is not None]
        # Two deaths seen in one look have lost their order; a rank that was killed cannot be the other's consequence.
        for rank, _ in sorted(dead, key=lambda item: item[1].si_code == os.CLD_EXITED):
            process = self.alive.pop(rank)
            os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
            self.tell_guard(f"-{process.pid}")
            seconds = time.monotonic() - self.began
            self.exits.append(RankExit(rank=rank, code=code, seconds=seconds))
            if code != 0 and self.first_failure is None:
                self.first_failure = self.exits[-1]
                self.end()

    def receive(self, number: int) -> None:
        """Pass a signal on to the ranks; the second request to stop is a request to kill."""
        if number in STOP_SIGNALS:
            if self.stop_asked:
                self.kill_at = time.monotonic()
            self.stop_asked = True
        self._signal_leaders(number)

    def enforce(self) -> None:
        """Kill whoever is still there when the grace time is over."""
        if self.kill_at is not None and time.monotonic() >= self.kill_at:
            for process in self.alive.values():
                os.killpg(process.pid, signal.SIGKILL)
            self.kill_at = None

    def seconds_to_wait(self, most_s: float) -> float:
        """How long a wait may last that must not miss the end of the grace time."""
        return most_s if self.kill_at is None else min(most_s, max(self.kill_at - time.monotonic(), 0.0))

    def end(self) -> None:
        """Tell every rank to end, and begin the grace time, unless it has begun."""
        if self.kill_at is not None:
            return
        if not self.stop_asked:
            # A rank that was already asked to stop may be saving: it keeps its grace time, without a second TERM.
            self._signal_leaders(signal.SIGTERM)
        self.kill_at = time.monotonic() + self.grace_s

    def _signal_leaders(self, number: int) -> None:
        for process in self.alive.values():
            # Not yet reaped, so the number is still ours, even if the process has just died.
            os.kill(process.pid, number)


def look(pid: int) -> os.waitid_result | None:
    """See whether a child has ended, without reaping it: so long its number cannot go to a stranger's group."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)


def last_lines(path: Path, count: int) -> list[str]:
    """Return the last `count` lines of a log; only its last 64 KiB are read."""
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - 65536, 0))
        return file.read().decode("utf-8", "replace").splitlines()[-count:]


@contextmanager
def open_log(path: Path, rank: int, host: str) -> Iterator[int]:
    """Open a rank's log for appending: what an earlier life of the run wrote is evidence."""
    with path.open("ab", buffering=0) as file:
        file.write(f"=== {time.strftime('%Y-%m-%d %H:%M:%S')} rank {rank} on {host}\n".encode())
        yield file.fileno()


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
        try:
            pipe.write(f"{message}\n".encode())
            pipe.flush()
        except BrokenPipeError:
            return  # somebody killed the guard: the job goes on without it

    try:
        yield tell
    finally:
        process.communicate()
