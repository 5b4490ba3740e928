"""What signals ask of a process that trains, and when it obeys. Imported before everything else, so it imports little.

    before the first step   ended at once, exit code 75: there is nothing to save
    it waits for a batch    the wait ends, the ranks agree, save, and end with 75
    in a step               after the step they agree, save, and end with 75
    a second request        killed by it (TERM, INT, HUP, half a second after the first: a terminal and a launcher may
                            both deliver that)

SIGUSR2 asks where the process stands: every thread's traceback goes to stderr, and it goes on.

A thread of its own reads the signals (Python's wake-up descriptor), because a handler has to wait while the main thread
stands in C: in a rendezvous, say.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from pathlib import Path

BEGAN = time.time()
"""When this process began, nearly."""
BEGAN_MONOTONIC = time.monotonic()
"""The same on a clock that nobody sets."""
ASKING_SIGNALS = (signal.SIGUSR1, signal.SIGTERM)
"""Requests that a run listens to even if its parent ignored them: launchers shield their children's first moments."""
KEPT_SIGNALS = (signal.SIGINT, signal.SIGHUP)
"""Requests that stay ignored if the parent ignored them (`nohup`, `&` in a script)."""
STOP_SIGNALS = (*ASKING_SIGNALS, *KEPT_SIGNALS)
TRACEBACK_SIGNAL = signal.SIGUSR2
AGAIN_S = 0.5
"""A request that comes so much later than the first is a second one."""
LEAVE_S = 5.0
"""So long the note may take that it leaves: the run folder's disk may not answer."""
LOOK_S = 1.0
"""How often `RUN/stop` is looked at while the run waits for a batch."""
PR_SET_PDEATHSIG = 1  # linux/prctl.h


class StopAsked(BaseException):
    """Raised inside `StopRequest.interrupting` when a request to stop comes."""


class StopRequest:
    """What this process knows about a request to stop."""

    def __init__(self) -> None:
        self.signal_reason = ""
        self.on_leave: Callable[[str], None] = lambda reason: None
        """Called with the reason when it ends before the first step."""
        self.folder: Path | None = None
        """The run folder, on the rank that looks at its `stop`."""
        self._has_begun = False
        self._may_interrupt = False
        self._first: float | None = None

    @classmethod
    @contextmanager
    def listening(cls) -> Iterator[StopRequest]:
        """Catch the signals for the length of the `with` block. In the main thread only."""
        request = cls()
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        woken_before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
        for number, handler in before.items():
            if number in ASKING_SIGNALS or handler is not signal.SIG_IGN:
                signal.signal(number, request._receive)
        faulthandler.register(TRACEBACK_SIGNAL, file=sys.__stderr__ or 2, all_threads=True)
        thread = threading.Thread(target=request._watch, args=(reader,), name="signals", daemon=True)
        thread.start()
        try:
            yield request
        finally:
            faulthandler.unregister(TRACEBACK_SIGNAL)
            for number, handler in before.items():
                signal.signal(number, handler if handler is not None else signal.SIG_DFL)
            signal.set_wakeup_fd(woken_before)
            os.close(writer)
            thread.join()
            os.close(reader)

    def begin(self) -> None:
        """Say that the first step begins: from now on there is something to save."""
        self._has_begun = True

    @contextmanager
    def interrupting(self) -> Iterator[None]:
        """Raise StopAsked in the `with` block, wherever it is, when there is a request or one comes."""
        self._may_interrupt = True
        try:
            if self.signal_reason:
                raise StopAsked
            yield
        finally:
            self._may_interrupt = False

    def reason(self, folder: Path | None) -> str:
        """Why this process should stop, or "". `folder`: the run folder, on the rank that looks at its file."""
        from cclm.run.stop import read_request

        asked = read_request(folder) if folder is not None else None
        return asked.reason if asked is not None else self.signal_reason

    def _receive(self, number: int, frame: FrameType | None) -> None:
        """Take note; the rest is done by the thread, which has been told by now."""
        self.signal_reason = self.signal_reason or signal.Signals(number).name
        if self._may_interrupt:
            self._may_interrupt = False
            raise StopAsked

    def _watch(self, reader: int) -> None:
        poll = select.poll()  # select() knows no descriptor above 1,023, and a process with many shards has those
        poll.register(reader, select.POLLIN)
        while True:
            if not poll.poll(1000 * LOOK_S):
                self._look_at_file()
                continue
            received = os.read(reader, 64)
            if not received:
                return
            for number in received:
                if number in STOP_SIGNALS:
                    self._judge(signal.Signals(number))

    def _look_at_file(self) -> None:
        """Wake the main thread up if it waits for a batch and RUN/stop asks; after a step it looks by itself."""
        if self._may_interrupt and self.folder is not None and (asked := self.reason(self.folder)):
            self.signal_reason = asked
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    def _judge(self, number: signal.Signals) -> None:
        now = time.monotonic()
        if not self._has_begun:
            self._leave(number.name)
        if number == signal.SIGUSR1:  # it says "save", often some time before TERM, which then says nothing else
            return
        if self._first is not None and now - self._first >= AGAIN_S:
            os.write(2, f"{number.name}, the second request: ended without saving\n".encode())
            # As if nobody had caught it, so that the parent sees it. Python lets only the main thread do that.
            ctypes.CDLL(None).signal(int(number), 0)
            os.kill(os.getpid(), number)
        self._first = now if self._first is None else self._first

    def _leave(self, name: str) -> NoReturn:
        """End this process. Not by an exception: it would cut an import short, or wait for C, or be swallowed."""
        from cclm.run.causes import EXIT_CODES, Cause

        reason = f"{name} before the first step"
        note = threading.Thread(target=self.on_leave, args=(reason,), daemon=True)
        note.start()
        note.join(LEAVE_S)
        os.write(2, f"{reason}: nothing to save; the same command goes on\n".encode())
        os._exit(EXIT_CODES[Cause.STOPPED])


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when `parent` dies, even by kill -9; end at once if it is dead already. Call it
    in the child, first of all. It survives exec, but children do not inherit it; the thread that started the child must
    live as long as the parent. Elsewhere than on Linux it does nothing."""
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:
        os._exit(128 + signal.SIGKILL)


def expect_children() -> None:
    """Have the kernel keep the exit codes of children, also where the parent ignored SIGCHLD: they would be lost."""
    if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


@contextmanager
def quiet_interrupt() -> Iterator[None]:
    """Let Ctrl-C end the process without a traceback, for as long as it only imports. An ignored one stays ignored."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    yield
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, before)
