"""Worker processes that build a rank's batches ahead of their use; values come in order, whoever made them.

    rank ── step numbers ──► worker 0: every second step ─┐
         ── step numbers ──► worker 1: the others        ─┴─ descriptor of a batch in anonymous memory ──► mapped

Why not torch's DataLoader: what it moves goes through files in /dev/shm and sockets under TMPDIR. Where one is full or
the other's path too long, its worker drops the batch, says so and lives on, and the rank waits for ever. Here nothing
has a name: batches lie in `memfd`s, whose descriptors travel through socket pairs made before the workers.

A worker that dies is noticed at once, and one that stops delivering while it lives after a deadline, with the place
where it stands. Workers die with their rank, in the middle of a batch, too, however it ends. Linux only.
"""

from __future__ import annotations

import contextlib
import faulthandler
import io
import mmap
import os
import pickle
import signal
import socket
import struct
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing.pool import ExceptionWithTraceback  # type: ignore[attr-defined]  # public, but not in typeshed
from pathlib import Path
from typing import Any, Generic, NoReturn, TypeVar

import torch
from torch import Tensor

from cclm.errors import Cause, CclmError
from cclm.run.causes import cause_of
from cclm.run.signals import STOP_SIGNALS, TRACEBACK_SIGNAL, die_with_parent

Value = TypeVar("Value")

AHEAD = 4
"""Steps that a worker may be ahead, if memory allows."""
SLOWER = 10
"""A batch may take so many times as long as the slowest before it, if that is more than the deadline."""
LOOK_S = 1.0
"""How often a rank that waits looks at the time."""
SAY_S = 60.0
"""After so long it says what it waits for; then after twice as long, and so on."""
STACK_S = 2.0
"""Time for a worker to write down where it stands."""
ALIGNMENT = 64
_REQUEST = struct.Struct("=q")
"""Step."""
_ANSWER = struct.Struct("=qd")
"""Step, seconds that it took."""
STATES = {
    "R": "computing",
    "S": "sleeping",
    "D": "waiting for a disk or a network file system that does not answer",
    "T": "stopped by SIGSTOP",
    "t": "stopped by a debugger",
    "Z": "dead",
}
"""What the kernel says about a process, by its letter in /proc/PID/stat."""


@dataclass
class _Worker:
    """A worker process, seen by its rank."""

    number: int
    pid: int
    link: socket.socket
    """Steps go out, descriptors come in."""
    stack: int
    """Descriptor of a file in memory: where it stands, once it is asked."""
    todo: Iterator[int]
    """Steps that it will be asked for."""
    asked: list[int] = field(default_factory=list)
    """Steps that it has been asked for and has not delivered."""

    @property
    def name(self) -> str:
        return f"loader worker {self.number} (process {self.pid})"


class WorkerPool(Generic[Value]):
    """Iterates over `make(step)` for each of `steps`, in order, computed in `num_workers` processes.

    The workers are forked when the pool is made, so `make` may be anything. An exception in a worker is raised here as
    it was, with the worker's traceback as its cause.

    Args:
        make: a pure function; tensors in its results are moved without a copy in this process.
        timeout_s: a worker that delivers nothing for so long has hung.
        memory_bytes: what the batches that are ready may take in all; each worker may always hold one.

    To iterate raises CclmError with cause TRANSIENT, when a worker died or hung.
    """

    def __init__(
        self,
        make: Callable[[int], Value],
        steps: Sequence[int],
        *,
        num_workers: int,
        timeout_s: float,
        memory_bytes: int,
    ) -> None:
        self._steps, self._timeout_s, self._memory_bytes = steps, timeout_s, memory_bytes
        self._ahead, self._slowest_s = 1, 0.0
        self._workers: list[_Worker] = []
        try:
            for number in range(min(num_workers, len(steps))):
                self._start(number, make, iter(steps[number::num_workers]))
                self._ask(self._workers[-1])
        except BaseException:
            self.close()
            raise

    def __iter__(self) -> Iterator[Value]:
        try:
            for index, step in enumerate(self._steps):
                yield self._receive(self._workers[index % len(self._workers)], step)
        finally:
            self.close()

    def close(self) -> None:
        """Kill the workers. Done by the end of the iteration."""
        for worker in self._workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGKILL)
            worker.link.close()
            os.close(worker.stack)
        for worker in self._workers:
            _reap(worker.pid)
        self._workers.clear()

    def _start(self, number: int, make: Callable[[int], Value], todo: Iterator[int]) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        stack, parent = os.memfd_create("stack"), os.getpid()
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                for other in (*(worker.link for worker in self._workers), ours):
                    other.close()  # or the rank's end of these pairs would outlive the rank
                _work(make, theirs, stack, parent)
                code = 0
            except BaseException:  # noqa: BLE001 - nobody is above: it is told, and ends this process alone
                traceback.print_exc()
            finally:
                os._exit(code)
        theirs.close()
        ours.settimeout(LOOK_S)
        self._workers.append(_Worker(number=number, pid=pid, link=ours, stack=stack, todo=todo))

    def _ask(self, worker: _Worker) -> None:
        """Ask for further steps, until the worker has enough to do."""
        for step in islice(worker.todo, max(0, self._ahead - len(worker.asked))):
            with contextlib.suppress(OSError):  # it is dead: whoever waits for its batch finds out and says so
                worker.link.send(_REQUEST.pack(step))
            worker.asked.append(step)

    def _receive(self, worker: _Worker, step: int) -> Value:
        began, say_at_s = time.monotonic(), SAY_S
        while True:
            try:
                head, descriptors, _, _ = socket.recv_fds(worker.link, _ANSWER.size, 1)
            except TimeoutError:
                waited_s = time.monotonic() - began
                if waited_s > max(self._timeout_s, SLOWER * self._slowest_s):
                    self._raise_hung(worker, step, waited_s)
                if waited_s > say_at_s:
                    doing = f"{worker.name}, {state_of(worker.pid)}"
                    sys.stderr.write(f"waits for step {step} of {doing}: {waited_s:.0f} s\n")
                    say_at_s *= 2
                continue
            except OSError:
                head = b""
            break
        if not head:
            self._raise_dead(worker, step)
        if not descriptors:
            raise CclmError(
                where=f"step {step}",
                expected=f"room for one more open file, the batch of {worker.name}",
                got="too many open files",
                do="Raise the limit (`ulimit -n`), or lower data.num_workers.",
            )
        number, seconds = _ANSWER.unpack(head)
        asked = worker.asked.pop(0)
        assert number == step == asked, f"{worker.name} delivered step {number}, not {step}"
        size_bytes = os.fstat(descriptors[0]).st_size
        value = _unpack(descriptors[0])
        self._slowest_s = max(self._slowest_s, seconds)
        self._ahead = max(1, min(AHEAD, self._memory_bytes // (size_bytes * len(self._workers))))
        self._ask(worker)
        if isinstance(value, Exception):
            raise value
        return value  # type: ignore[no-any-return]

    def _raise_dead(self, worker: _Worker, step: int) -> NoReturn:
        code, how = _reap(worker.pid), "it ended"
        if code is not None:
            how = f"it was killed by {signal.Signals(-code).name}" if code < 0 else f"it ended with exit code {code}"
        raise CclmError(
            where=f"step {step}",
            expected=f"a batch from {worker.name}",
            got=how,
            do="Look above for its last words. The kernel kills (SIGKILL, SIGBUS) where memory runs out: lower "
            "data.num_workers, raise data.micro_batches, or ask for more memory. The same command goes on.",
            cause=Cause.TRANSIENT,
        )

    def _raise_hung(self, worker: _Worker, step: int, waited_s: float) -> NoReturn:
        state, stack = state_of(worker.pid), _ask_for_stack(worker)
        if stack:
            sys.stderr.write(f"{worker.name} stands here:\n{stack}\n")
        main_thread = stack.partition("Current thread")[2].splitlines()
        place = next((line.strip() for line in main_thread if line.lstrip().startswith("File ")), "")
        raise CclmError(
            where=f"step {step}",
            expected=f"a batch from {worker.name} within {max(self._timeout_s, SLOWER * self._slowest_s):.0f} s",
            got=f"none for {waited_s:.0f} s; it is {state}" + (f", at {place}" if place else ""),
            do="Check the storage of the shards; the same command goes on. If its batches take so long, "
            "raise data.batch_timeout_s.",
            cause=Cause.TRANSIENT,
        )


def state_of(pid: int) -> str:
    """Return in words what a process of this machine does, as the kernel sees it."""
    try:
        letter = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return "gone"
    return STATES.get(letter, f"in state {letter}")


def _ask_for_stack(worker: _Worker) -> str:
    """Have a worker write down where each of its threads stands; "" if it cannot even do that."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(worker.pid, TRACEBACK_SIGNAL)
    deadline, foot = time.monotonic() + STACK_S, f" in {_work.__name__}\n"
    while True:  # it writes line by line, the main thread last, and may be kept from it in between
        stack = os.pread(worker.stack, 1 << 16, 0).decode(errors="replace")
        if foot in stack or time.monotonic() > deadline:
            return stack.strip()
        time.sleep(0.05)


def _reap(pid: int, timeout_s: float = 5.0) -> int | None:
    """Return a dead child's exit code, or minus its signal; None if that is lost, or if it stands in the kernel."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            found, status = os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:  # our parent ignores SIGCHLD, and so do we: the kernel keeps no record
            return None
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    return None


def _work(make: Callable[[int], Any], link: socket.socket, stack: int, parent: int) -> None:
    """Compute what is asked for until the rank is gone; the life of a worker."""
    die_with_parent(parent)
    signal.set_wakeup_fd(-1)  # the rank's own
    for number in STOP_SIGNALS:  # a scheduler sends TERM to every process: the rank saves, and needs its workers
        signal.signal(number, signal.SIG_IGN)
    faulthandler.register(TRACEBACK_SIGNAL, file=stack, all_threads=True)
    torch.set_num_threads(1)
    while request := link.recv(_REQUEST.size):
        (step,) = _REQUEST.unpack(request)
        began = time.monotonic()
        try:
            descriptor = _pack(make(step))
        except Exception as error:  # noqa: BLE001 - it is raised again in the rank
            descriptor = _pack(_carried(error))
        try:
            socket.send_fds(link, [_ANSWER.pack(step, time.monotonic() - began)], [descriptor])
        except (BrokenPipeError, ConnectionResetError):
            return
        finally:
            os.close(descriptor)


def _carried(error: Exception) -> object:
    """What becomes the same exception in the rank. What it was raised from does not come along, so its cause does."""
    if isinstance(error, CclmError):
        error.cause = cause_of(error)
    carried = ExceptionWithTraceback(error, error.__traceback__)
    try:
        pickle.loads(pickle.dumps(carried))
    except Exception:  # noqa: BLE001 - whatever a library's exception does when it is pickled
        return RuntimeError(carried.tb)
    return carried


class _Pickler(pickle.Pickler):
    """Takes the memory of tensors out of the pickle, in whatever order their dimensions lie in it."""

    def reducer_override(self, value: object) -> Any:
        """Called by pickle for every object."""
        if not isinstance(value, Tensor):
            return NotImplemented
        strides = value.stride()
        order = sorted(range(value.ndim), key=lambda dim: (-strides[dim], dim))
        back = [order.index(dim) for dim in range(value.ndim)]
        return _tensor, (value.permute(order).contiguous().numpy(), back)


def _tensor(array: Any, order: list[int]) -> Tensor:
    return torch.from_numpy(array).permute(order)


def _pack(value: object) -> int:
    """Write a value into anonymous memory; return its descriptor.

    number of pieces, their lengths | pickle | memory of each tensor      each part begins at a multiple of ALIGNMENT
    """
    buffers: list[pickle.PickleBuffer] = []
    stream = io.BytesIO()
    _Pickler(stream, protocol=5, buffer_callback=buffers.append).dump(value)
    pieces = [stream.getbuffer(), *(buffer.raw() for buffer in buffers)]
    lengths = struct.pack(f"={1 + len(pieces)}q", len(pieces), *map(len, pieces))
    descriptor = os.memfd_create("batch")
    try:
        with open(descriptor, "wb", closefd=False) as file:
            for part in (memoryview(lengths), *pieces):
                file.write(part)
                file.write(bytes(-len(part) % ALIGNMENT))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _unpack(descriptor: int) -> Any:
    """Map what `_pack` wrote. The memory lives as long as the last tensor in it."""
    try:
        memory = memoryview(mmap.mmap(descriptor, 0))
    finally:
        os.close(descriptor)
    (num_pieces,) = struct.unpack_from("=q", memory)
    pieces, place = [], 8 * (1 + num_pieces)
    for length in struct.unpack_from(f"={num_pieces}q", memory, 8):
        place += -place % ALIGNMENT
        pieces.append(memory[place : place + length])
        place += length
    return pickle.loads(pieces[0], buffers=pieces[1:])
