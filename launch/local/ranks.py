"""The ranks of one machine, started, watched and ended as `launch/local/run.py` says."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path

from cclm.run.causes import GOOD_ENDS, Cause
from cclm.run.signals import AGAIN_S
from cclm.run.status import RankEnd, cause_of_end
from cclm.run.stop import CLEARED_VARIABLE
from launch.local import guard, shim
from launch.plan.job import JobPlan, RankPlan

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
ALONE_S = 5.0
"""Ranks that stop do so together. So long after the first of them the others are asked, too: one that was asked before
the ranks had met has left, and the others would wait for it."""


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
                env={**os.environ, **rank.environment, CLEARED_VARIABLE: str(self.plan.run_folder)},
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
