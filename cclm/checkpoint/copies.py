"""Copies beside training, and the way back from them: a run goes on where its folder is gone.

a checkpoint is complete ─▶ rank 0's copier, a process: files → marker → prune        (`cclm.checkpoint.store`)
RUN has no checkpoint    ─▶ the newest copy: each rank fetches a share of the files ─▶ RUN, as it was at that step
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from cclm.checkpoint.store import OF_CHECKPOINT, OF_RUN, Copy, Store, copy_run
from cclm.distributed.agreement import on_every_rank
from cclm.distributed.collectives import Collectives
from cclm.errors import CheckpointError
from cclm.files.atomic import sync
from cclm.files.lock import run_lock
from cclm.run.background import Writer
from cclm.run.checkpoints import (
    FOLDER,
    PINNED,
    partial_folder,
    publish,
    read_pins,
    remove_leftovers,
    step_folder,
    visible_checkpoints,
)
from cclm.shardfile.fetch import DamagedFileError

PINS = f"{OF_RUN}{FOLDER}/{PINNED}"
BESIDE = ".run"
"""In the folder of a checkpoint that is being brought in: files of the run, until they are moved to their places."""


class Copier:
    """Keeps the copies of a run up to date, from a process beside its first rank. It never fails a run."""

    def __init__(
        self, run_folder: Path, url: str, keep: int, keep_every: int | None, note: Callable[[str, float], None]
    ) -> None:
        self._call = partial(copy_run, run_folder.absolute(), url, keep, keep_every)
        self._writer, self._url, self._note = Writer([]), url, note
        self._began: float | None = None
        self._is_asked_again = False
        self.num_failed = 0
        """Times that copying was given up, in this attempt."""

    @property
    def is_busy(self) -> bool:
        """Whether a copy is being made."""
        return self._began is not None

    def begin(self) -> None:
        """Copy what is complete; as soon as the copy before is made, if there is one."""
        self._is_asked_again = self.is_busy
        if not self.is_busy:
            self._began = time.monotonic()
            self._writer.submit(self._call)

    def look(self) -> None:
        """Take note of the end of a copy; does not wait."""
        if self._began is None or not self._writer.is_ready():
            return
        seconds, self._began = time.monotonic() - self._began, None
        try:
            if self._writer.result():
                self._note("speed/checkpoint_copy_s", seconds)
        except Exception as error:  # noqa: BLE001 - whatever a store's client raises: training goes on
            self.num_failed += 1
            text = " ".join(str(error).split())
            sys.stderr.write(
                f"note: copying to {self._url} was given up ({type(error).__name__}: {text}); "
                "tried again with the next checkpoint\n"
            )
        self._note("checkpoint/failed_copies", float(self.num_failed))
        if self._is_asked_again:
            self.begin()

    def close(self) -> None:
        """Leave what is not copied to the next start."""
        self._writer.close()


def bring_in(ranks: Collectives, run_folder: Path, url: str) -> None:
    """Bring in the newest sound copy at a URL and the best ones, if the run folder has no checkpoint. A collective.

    A damaged copy is set aside, with a line on standard error.

    Raises:
        CheckpointError: on every rank, if the URL cannot be read or written, or all copies are damaged.
    """
    is_first = ranks.rank == 0
    if on_every_rank(ranks, lambda: is_first and bool(visible_checkpoints(run_folder)), "list checkpoints")[0]:
        return
    with run_lock(run_folder) if is_first else nullcontext():
        damaged = set[int]()
        while wanted := on_every_rank(ranks, partial(_wanted, run_folder, url, damaged, is_first), f"look at {url}")[0]:
            found = on_every_rank(
                ranks, partial(_fetch, url, wanted, run_folder, ranks), f"bring in its share of {url}"
            )
            if not (damaged := set[int]().union(*found)):
                break
        else:
            return
        on_every_rank(ranks, lambda: _place(wanted, run_folder) if is_first else None, "finish")
        if is_first:
            sys.stderr.write(f"{run_folder} had no checkpoint: goes on from step {wanted[0].step} at {url}\n")


def _wanted(run_folder: Path, url: str, damaged: Collection[int], is_first: bool) -> list[Copy]:
    """Set damaged copies aside; return the newest of the others, then the best ones. The first rank alone does it."""
    if not is_first:
        return []
    store = Store(url)
    store.check()
    for step in damaged:
        store.set_aside(step)
    remove_leftovers(run_folder)
    if not (copies := store.copies()):
        if damaged:
            raise CheckpointError(
                where=url,
                expected="a copy whose files are as they were",
                got="damaged ones only",
                do="Give another checkpoint.copy_to to begin anew; the damaged copies stay where they are.",
            )
        return []
    newest = copies[max(copies)]
    if PINS in newest.files:
        try:
            store.fetch(newest, PINS, run_folder / FOLDER / PINNED)
        except DamagedFileError as error:
            note_damage(newest, error)
            return _wanted(run_folder, url, {newest.step}, is_first)
    return [newest, *(copies[step] for step in read_pins(run_folder).staying(copies) if step != newest.step)]


def _fetch(url: str, copies: Sequence[Copy], run_folder: Path, ranks: Collectives) -> set[int]:
    """Bring in this rank's share, and sync it; of the run's own files those that belong to the newest copy.

    Returns the steps of the copies of which a file is damaged.
    """
    store, damaged = Store(url), set[int]()
    names = [
        (copy, name)
        for copy in copies
        for name in sorted(copy.files)
        if copy is copies[0] or name.startswith(OF_CHECKPOINT)
    ]
    for copy, name in names[ranks.rank :: ranks.world_size]:
        target = partial_folder(run_folder, copy.step) / _place_of(name)
        try:
            store.fetch(copy, name, target)
        except DamagedFileError as error:
            note_damage(copy, error)
            damaged.add(copy.step)
            continue
        sync(target)
    return damaged


def note_damage(copy: Copy, error: DamagedFileError) -> None:
    """Say that a copy is passed over."""
    sys.stderr.write(f"note: the copy of step {copy.step} is damaged and set aside: {error}\n")


def _place_of(name: str) -> str:
    """Where a file lies below the folder of a checkpoint that is brought in."""
    return name.removeprefix(OF_CHECKPOINT) if name.startswith(OF_CHECKPOINT) else f"{BESIDE}/{name}"


def _place(copies: Sequence[Copy], run_folder: Path) -> None:
    """Put the files of the run in their places, and then the checkpoints, the newest first: they make it a run's."""
    hidden = partial_folder(run_folder, copies[0].step)
    for name in copies[0].files:
        if name.startswith(OF_RUN):
            target = run_folder / name.removeprefix(OF_RUN)
            target.parent.mkdir(parents=True, exist_ok=True)
            (hidden / _place_of(name)).replace(target)
    shutil.rmtree(hidden / BESIDE, ignore_errors=True)
    for copy in copies:
        publish(partial_folder(run_folder, copy.step), step_folder(run_folder, copy.step))
