"""Checkpoints that are written while the ranks train: they wait for a copy in memory, not for the disk.

    beside forward and backward   a thread   its share of the state ── copied ──► host memory, kept for the next time
    before the next update        every rank   waits for the rest of the copy, if there is any
    beside training               every writer   copy ──► state/rank_N.safetensors: written, hashed, synced
    between steps                 the ranks   all have answered (each says so in the step's collective) ─► records
    beside training               rank 0's writer   marker → rename to step_N → prune
    between steps                 the ranks   it has answered ─► complete

Forward and backward change nothing of what is copied (the values and moments that the optimizer updates, averages).

Buffers make every rank larger by its share of the state: 12 bytes for each trained parameter that it holds, 16 with an
average. Where the ranks of a node would not have the memory, they write as `save_checkpoint` does, and say so.
"""

from __future__ import annotations

import mmap
import os
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cclm.checkpoint.collective import is_there, joined, make_room, save_checkpoint
from cclm.distributed.agreement import on_every_rank
from cclm.engine.fragments import FOLDER, ShareFile, share_path
from cclm.engine.protocol import Engine
from cclm.errors import CheckpointError
from cclm.ops.heap import return_freed_memory
from cclm.run import checkpoints
from cclm.run.background import Writer, write_files
from cclm.run.checkpoints import FileRecord, Marker
from cclm.run.machine import available_memory_bytes

GROWTH = 1.02
"""A buffer is so much larger than its first share, whose header holds numbers that get longer."""
LEFT = 0.1
"""Of the memory that a node has left, that buffers leave to others."""


class HostBuffer:
    """Bytes of host memory that a rank fills and its writer reads; pinned for a GPU. Reused, and larger when needed."""

    def __init__(self, device: torch.device) -> None:
        self.descriptor = os.memfd_create("checkpoint")
        self.bytes = torch.empty(0, dtype=torch.uint8)
        self._stream: Any = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._is_pinned = False

    def missing(self, size_bytes: int) -> int:
        """Return how much memory it takes to have room for so many bytes."""
        return 0 if size_bytes <= self.bytes.numel() else int(size_bytes * GROWTH)

    def reserve(self, size_bytes: int) -> None:
        """Have room for so many bytes."""
        if size_bytes := self.missing(size_bytes):
            self._unpin()
            os.ftruncate(self.descriptor, size_bytes)
            self.bytes = torch.frombuffer(mmap.mmap(self.descriptor, size_bytes), dtype=torch.uint8)
            if self._stream is not None:  # where this is refused, copies are slower
                self._is_pinned = int(_cudart().cudaHostRegister(self.bytes.data_ptr(), size_bytes, 0)) == 0
                if not self._is_pinned:
                    with suppress(RuntimeError):  # CUDA keeps the refusal for the next launch: let it be this one
                        torch.zeros(1, device=self._stream.device)

    def filling(self, share: ShareFile) -> Callable[[], None]:
        """Return what copies the bytes that a share has now, for any thread."""
        if self._stream is None:
            return partial(share.copy_into, self.bytes)
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        return partial(self._fill_from_device, share, self._stream)

    def _fill_from_device(self, share: ShareFile, stream: Any) -> None:
        with torch.cuda.device(stream.device), torch.cuda.stream(stream):
            share.copy_into(self.bytes)
        stream.synchronize()

    def close(self) -> None:
        """Give the memory back."""
        self._unpin()
        self.bytes = torch.empty(0, dtype=torch.uint8)
        os.close(self.descriptor)

    def _unpin(self) -> None:
        if self._is_pinned:
            _cudart().cudaHostUnregister(self.bytes.data_ptr())
            self._is_pinned = False


def _cudart() -> Any:
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]


@dataclass(frozen=True, kw_only=True)
class _Room:
    node: str
    missing_bytes: int
    left_bytes: int
    is_there: bool
    """Whether there is a checkpoint of this step already; rank 0 has looked."""


class _Copy(threading.Thread):
    """Fills the buffer, and keeps what it meets."""

    def __init__(self, fill: Callable[[], None]) -> None:
        super().__init__(name="checkpoint", daemon=True)
        self._fill = fill
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            self._fill()
        except Exception as error:  # noqa: BLE001 - it is raised in the main thread, on every rank
            self.error = error


@dataclass(kw_only=True)
class _Pending:
    step: int
    size_bytes: int
    completed: Callable[[float], None]
    copy: _Copy
    waited_s: float = 0.0
    """For the copy, before an update."""
    is_copied: bool = False
    error: Exception | None = None
    """That kept this rank from copying, or its writer from beginning."""
    has_made_room: bool = False
    marker: Marker | None = None


class BackgroundSaver:
    """Saves a run's state behind its steps, one checkpoint at a time. All ranks make the same calls; what a writer
    meets is raised as `save_checkpoint` would, on every rank, by the call that comes upon it."""

    def __init__(
        self,
        engine: Engine[Any],
        run_folder: Path,
        keep: int,
        keep_every: int | None = None,
        reference_outputs: Callable[[Engine[Any], Path], None] | None = None,
    ) -> None:
        self._engine, self._ranks, self._run_folder = engine, engine.collectives, run_folder.absolute()
        self.keep, self._keep_every, self._reference_outputs = keep, keep_every, reference_outputs
        self._is_first, self._has_said = engine.rank == 0, False
        self._buffer = HostBuffer(engine.device)
        self._writer = Writer([self._buffer.descriptor])
        self._pending: _Pending | None = None

    @property
    def is_pending(self) -> bool:
        """Whether a checkpoint is not complete yet; alike on every rank."""
        return self._pending is not None

    @property
    def is_writing(self) -> bool:
        """Whether this rank copies, or its writer is at work."""
        pending = self._pending
        if pending is None or (pending.is_copied and pending.error is not None):
            return False
        return not (pending.is_copied and self._writer.is_ready())

    def begin(
        self,
        step: int,
        state: Mapping[str, Any],
        completed: Callable[[float], None] = lambda waited_s: None,
    ) -> None:
        """Wait for the checkpoint before, begin to copy the state after `step` updates (as for `save_checkpoint`), and
        have it written. A collective. If none is pending afterwards there is one of this step already, or it was
        written at once, for want of memory. `completed` is called on every rank once it is complete, with the seconds
        that an update waited for the copy."""
        self.wait()
        hidden = self._hidden(step)
        share = self._engine.share({"step": step, "state": dict(state)})
        rooms = on_every_rank(self._ranks, lambda: self._room(step, share), "prepare a checkpoint")
        if rooms[0].is_there:
            return
        if short := _shortage(rooms):
            self._write_in_the_step(step, state, short)
            return
        on_every_rank(
            self._ranks, lambda: self._buffer.reserve(share.size_bytes), "find memory for a copy of its share"
        )
        copy = _Copy(self._buffer.filling(share))
        self._pending = _Pending(step=step, size_bytes=share.size_bytes, completed=completed, copy=copy)
        self._engine.before_update = self._finish_copy
        copy.start()
        try:
            if self._reference_outputs is not None:
                self._reference_outputs(self._engine, hidden)
        except Exception:
            copy.join()
            self._pending = None
            raise

    def _finish_copy(self) -> None:
        """Wait for the copy, and let the writer begin; nobody reads the state any more."""
        self._engine.before_update = Engine.before_update
        pending = self._pending
        if pending is None or pending.is_copied:
            return
        began = time.monotonic()
        pending.copy.join()
        pending.is_copied, pending.waited_s, pending.error = True, time.monotonic() - began, pending.copy.error
        if pending.error is None:
            self._write(pending)

    def go_on(self) -> None:
        """Take the next step towards the checkpoint's completion; waits for writers that are at work. A collective."""
        assert self._pending is not None, "there is something to complete"
        self._finish_copy()
        try:
            if self._pending.marker is None:
                self._collect(self._pending)
            else:
                self._complete(self._pending)
        except Exception:
            self._pending = None
            raise

    def wait(self) -> None:
        """Wait until there is nothing to complete. A collective."""
        while self._pending is not None:
            self.go_on()

    def close(self) -> None:
        """Leave what is not complete: its folder goes with the leftovers."""
        if self._pending is not None:
            self._pending.copy.join()
        self._engine.before_update = Engine.before_update
        self._writer.close()
        self._buffer.close()

    def _hidden(self, step: int) -> Path:
        return checkpoints.partial_folder(self._run_folder, step)

    def _room(self, step: int, share: ShareFile) -> _Room:
        missing_bytes = self._buffer.missing(share.size_bytes)
        if missing_bytes > 0:
            return_freed_memory()  # what the process keeps of it is room, too
        return _Room(
            node=socket.gethostname(),
            missing_bytes=missing_bytes,
            left_bytes=available_memory_bytes(),
            is_there=self._is_first and is_there(self._run_folder, step),
        )

    def _write_in_the_step(self, step: int, state: Mapping[str, Any], short: str) -> None:
        if self._is_first and not self._has_said:
            sys.stderr.write(f"note: checkpoints are written while training waits: {short}\n")
            self._has_said = True
        keep = self.keep, self._keep_every
        save_checkpoint(self._engine, self._run_folder, step, state, *keep, self._reference_outputs)

    def _write(self, pending: _Pending) -> None:
        hidden = self._hidden(pending.step)
        name = share_path(hidden, self._ranks.rank).relative_to(hidden).as_posix()
        copy = self._buffer.descriptor, pending.size_bytes
        try:
            found = checkpoints.list_files(hidden) if self._is_first else []
            beside = [one for one in found if Path(one).parts[0] != FOLDER]
            self._writer.submit(partial(write_files, *copy, hidden, name, beside))
        except OSError as error:  # of this rank alone: `_collect` tells the others
            pending.error = error

    def _share_record(self, pending: _Pending) -> dict[str, FileRecord]:
        if pending.error is not None:
            raise pending.error
        found: dict[str, FileRecord] = self._writer.result()
        return found

    def _collect(self, pending: _Pending) -> None:
        """Put the records of all shares together, and let rank 0's writer complete the checkpoint."""
        hidden = self._hidden(pending.step)
        try:
            records = on_every_rank(self._ranks, partial(self._share_record, pending), f"write its share of {hidden}")
        except CheckpointError as error:
            keep = self.keep, self._keep_every
            if pending.has_made_room or not make_room(self._ranks, self._run_folder, error, *keep):
                raise
            pending.has_made_room = True
            self._write(pending)
            return
        pending.marker = Marker(step=pending.step, world_size=self._ranks.world_size, files=joined(records))
        if self._is_first:
            visible = checkpoints.step_folder(self._run_folder, pending.step)
            finish = checkpoints.finish
            self._writer.submit(partial(finish, hidden, visible, pending.marker, self.keep, self._keep_every))

    def _complete(self, pending: _Pending) -> None:
        on_every_rank(self._ranks, lambda: self._writer.result() if self._is_first else None, "finish")
        self._pending = None
        pending.completed(pending.waited_s)


def _shortage(rooms: Sequence[_Room]) -> str:
    """Return in words where the copies of a node's ranks would not find room, or ""."""
    missing, left = Counter[str](), dict[str, int]()
    for room in rooms:
        missing[room.node] += room.missing_bytes
        left[room.node] = min(room.left_bytes, left.get(room.node, room.left_bytes))
    short = (node for node in missing if missing[node] > (1 - LEFT) * left[node])
    return next(
        (f"copies of {missing[node] / 1e9:.1f} GB, and {left[node] / 1e9:.1f} GB left on {node}" for node in short), ""
    )
