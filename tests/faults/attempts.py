"""One start of a run after the other: ranks that a fork server begins in milliseconds, each a `python -m pretrain`.

    unbroken = Attempt(recipe, run, ranks=2)      0, 0
    killed   = Attempt(…, faults)                 137, 74    the same command goes on

Ranks are ended as `python -m launch run` does it: when one fails, the others get TERM, and after a while KILL.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from cclm.files.reading import read_json
from cclm.run import stop
from cclm.run.causes import EXIT_CODES, GOOD_ENDS, Cause
from cclm.run.launcher import ADDRESS, NUMBERS
from cclm.run.machine import LOOPBACK
from cclm.run.signals import die_with_parent
from launch.local.run import ALONE_S
from tests.faults.disk import MET
from tests.ranks.spawn import PRELOAD, keep_port

GOOD_CODES = frozenset(EXIT_CODES[cause] for cause in GOOD_ENDS)
STOPPED = EXIT_CODES[Cause.STOPPED]
GRACE_S = 5.0
"""Between TERM and KILL, once a rank has failed; `python -m launch run` has 15 s."""
PATIENCE_S = 600.0
"""An attempt that lasts longer hangs."""
LEAVE_S = 60.0
"""So long a process may take to follow its rank."""
LOOK_S = 0.02
Fault = Callable[[int], None]
"""Is called with its number in each rank before anything else is done there; pickles."""
Disturb = Callable[["Attempt"], None]
"""Is called again and again while the ranks live."""


@dataclass(kw_only=True)
class Attempt:
    """The ranks of one start."""

    arguments: Sequence[str]
    run: Path
    world_size: int
    faults: Sequence[Fault] = ()
    of_rank: Mapping[int, Sequence[str]] = field(default_factory=dict)
    """More arguments, of one rank."""
    began: float = field(default_factory=time.monotonic)
    ranks: list[BaseProcess] = field(default_factory=list)
    keeper: socket.socket | None = None
    """Of the port at which they meet."""
    has_sent: bool = False
    """A signal has reached a rank that lived."""
    is_ending: bool = False
    """A rank has failed, and the others were told."""
    is_asked: bool = False
    """All ranks were told to save and end."""
    is_hung: bool = False

    def start(self) -> Attempt:
        """Start the ranks."""
        stop.clear(self.run)
        self._met.unlink(missing_ok=True)
        (self.run.parent / "logs").mkdir(parents=True, exist_ok=True)
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([*PRELOAD])
        self.keeper, number = keep_port()
        for rank in range(self.world_size):
            numbers = (rank, rank, self.world_size, self.world_size)
            environment = {
                **dict(zip(NUMBERS, map(str, numbers), strict=True)),
                **dict(zip(ADDRESS, (LOOPBACK, str(number)), strict=True)),
            }
            environment |= {stop.CLEARED_VARIABLE: str(self.run), "OMP_NUM_THREADS": "1", MET: str(self._met)}
            log = self.run.parent / "logs" / f"{self.run.name}_{rank}.log"
            arguments = [*self.arguments, *self.of_rank.get(rank, ())]
            process = context.Process(target=_be_rank, args=(arguments, environment, str(log), self.faults))
            process.start()
            self.ranks.append(process)
        return self

    def wait(self, disturb: Disturb = lambda attempt: None) -> list[int]:
        """Wait for the end of all ranks, and end those that outlive another; return the codes, 128 + N for signal N."""
        kill_at, ask_at = self.began + PATIENCE_S, math.inf
        with self.keeper or nullcontext():
            while alive := [process for process in self.ranks if process.exitcode is None]:
                wait([process.sentinel for process in alive], LOOK_S)
                disturb(self)
                now, ended = time.monotonic(), {code for code in self.codes if code is not None}
                if ended - GOOD_CODES and not self.is_ending:
                    self.is_ending, kill_at, ask_at = True, min(kill_at, now + GRACE_S), now
                elif STOPPED in ended:
                    ask_at = min(ask_at, now + ALONE_S)
                if now >= ask_at and not self.is_asked:
                    self.send(signal.SIGTERM)
                if now >= kill_at:
                    self.is_hung = self.is_hung or not self.is_ending
                    self.send(signal.SIGKILL)
        return [code for code in self.codes if code is not None]

    @property
    def codes(self) -> list[int | None]:
        """Exit codes so far, by rank."""
        found = [process.exitcode for process in self.ranks]
        return [128 - code if code is not None and code < 0 else code for code in found]

    def send(self, number: int, rank: int | None = None) -> None:
        """Send a signal to one rank, or all that live."""
        self.is_asked = self.is_asked or (rank is None and number == signal.SIGTERM)
        for process in self.ranks if rank is None else [self.ranks[rank]]:
            if process.exitcode is None and process.pid is not None:
                with suppress(ProcessLookupError):  # it has ended just now
                    os.kill(process.pid, number)
                    self.has_sent = True

    @property
    def has_met(self) -> bool:
        """Whether anything has happened to a rank: a process notes it before it meets a fault (`disk.note`)."""
        return self.has_sent or self._met.exists()

    @property
    def _met(self) -> Path:
        return self.run.parent / "met"

    def left_behind(self) -> list[int]:
        """Return the processes that ranks of this start began and that outlive them: their environment tells."""
        mark = f"{stop.CLEARED_VARIABLE}={self.run}".encode()
        deadline = time.monotonic() + LEAVE_S
        while (left := list(_with_environment(mark))) and time.monotonic() < deadline:
            time.sleep(LOOK_S)
        return left

    @property
    def trains(self) -> bool:
        """Whether every rank says so."""
        said = [read_json(self.run / "status" / f"rank_{rank}.json", {}) for rank in range(self.world_size)]
        return all(status.get("phase") in ("training", "saving") for status in said)


def _with_environment(mark: bytes) -> Iterator[int]:
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark in path.read_bytes().split(b"\0"):
                yield int(path.parent.name)
        except OSError:  # it has ended
            continue


def _be_rank(arguments: list[str], environment: Mapping[str, str], log: str, faults: Sequence[Fault]) -> None:
    die_with_parent(os.getppid())  # the fork server, which goes with the main process
    os.environ.update(environment)
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    import torch

    from cclm.train.program import leave
    from pretrain.__main__ import main

    torch.set_num_threads(1)
    for fault in faults:
        fault(int(environment["RANK"]))
    leave(main(arguments))
