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

from cclm.checkpoint.store import COPIED, OF_CHECKPOINT, OF_RUN, Copy, Store, copy_run
from cclm.distributed.agreement import on_every_rank
from cclm.distributed.collectives import Collectives
from cclm.errors import CheckpointError
from cclm.files.atomic import file_sha256, sync
from cclm.files.lock import run_lock
from cclm.run import checkpoints
from cclm.run.background import Writer
from cclm.shardfile.cache import DamagedFileError

PINS = f"{OF_RUN}{checkpoints.FOLDER}/{checkpoints.PINNED}"
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
    """Bring in the newest sound copy at a URL and the best ones, if the run folder has no checkpoint. A collective. A
    damaged copy is passed over, with a line on standard error, and set aside once a sound one is here. Raise
    CheckpointError on every rank if the URL cannot be read or written, or all copies are damaged."""
    is_first = ranks.rank == 0
    visible = partial(checkpoints.visible_checkpoints, run_folder)
    has_any = on_every_rank(ranks, lambda: is_first and bool(visible()), "list checkpoints")
    if has_any[0]:
        return
    damaged = set[int]()
    with run_lock(run_folder) if is_first else nullcontext():
        while wanted := on_every_rank(ranks, partial(_wanted, run_folder, url, damaged, is_first), f"look at {url}")[0]:
            share = partial(_fetch, url, wanted, run_folder, ranks)
            if not (found := set[int]().union(*on_every_rank(ranks, share, f"bring in its share of {url}"))):
                break
            damaged |= found
        else:
            return
        on_every_rank(ranks, lambda: _place(wanted, run_folder) if is_first else None, "finish")
        if is_first:
            set_aside(url, damaged)
            sys.stderr.write(f"{run_folder} had no checkpoint: goes on from step {wanted[0].step} at {url}\n")


def set_aside(url: str, damaged: Collection[int]) -> None:
    """Make damaged copies none, now that a sound one before them is here: the run copies those steps anew."""
    store = Store(url)
    for step in damaged:
        store.set_aside(step)


def _wanted(run_folder: Path, url: str, damaged: set[int], is_first: bool) -> list[Copy]:
    """Return the newest copy that is not known as damaged, then the best ones. The first rank alone does it. Copies
    whose marker or pins are damaged are added to `damaged`."""
    if not is_first:
        return []
    store, pins = Store(url), run_folder / checkpoints.FOLDER / checkpoints.PINNED
    store.check()
    if not damaged:
        checkpoints.remove_leftovers(run_folder)
    for step in damaged:
        shutil.rmtree(checkpoints.partial_folder(run_folder, step), ignore_errors=True)
    pins.unlink(missing_ok=True)
    unreadable: list[int] = []
    copies = {step: copy for step, copy in store.copies(unreadable.append).items() if step not in damaged}
    for step in set(unreadable) - damaged:
        note_damage(step, f"{COPIED} cannot be read")
        damaged.add(step)
    if not copies:
        if damaged:
            raise CheckpointError(
                where=url,
                expected="a copy whose files are as they were",
                got=f"damaged ones only, of steps {', '.join(map(str, sorted(damaged)))}",
                do="Mend them, or give another checkpoint.copy_to to begin anew; nothing was changed there.",
            )
        return []
    newest = copies[max(copies)]
    if PINS in newest.files:
        try:
            store.fetch(newest, PINS, pins)
        except DamagedFileError as error:
            note_damage(newest.step, error)
            damaged.add(newest.step)
            return _wanted(run_folder, url, damaged, is_first)
    return [
        newest,
        *(copies[step] for step in checkpoints.read_pins(run_folder).staying(copies) if step != newest.step),
    ]


def _fetch(url: str, copies: Sequence[Copy], run_folder: Path, ranks: Collectives) -> set[int]:
    """Bring in this rank's share, and sync it; of the run's own files those that belong to the newest copy. Returns the
    steps of the copies of which a file is damaged."""
    store, damaged = Store(url), set[int]()
    names = [
        (copy, name)
        for copy in copies
        for name in sorted(copy.files)
        if copy is copies[0] or name.startswith(OF_CHECKPOINT)
    ]
    for copy, name in names[ranks.rank :: ranks.world_size]:
        target = checkpoints.partial_folder(run_folder, copy.step) / _place_of(name)
        if target.is_file() and file_sha256(target) == copy.files[name].sha256:
            continue  # it came before a file of another copy was found to be damaged
        try:
            store.fetch(copy, name, target)
        except DamagedFileError as error:
            note_damage(copy.step, error)
            damaged.add(copy.step)
            continue
        sync(target)
    return damaged


def note_damage(step: int, why: object) -> None:
    """Say that a copy is passed over."""
    sys.stderr.write(f"note: the copy of step {step} is damaged and passed over: {why}\n")


def _place_of(name: str) -> str:
    """Where a file lies below the folder of a checkpoint that is brought in."""
    return name.removeprefix(OF_CHECKPOINT) if name.startswith(OF_CHECKPOINT) else f"{BESIDE}/{name}"


def _place(copies: Sequence[Copy], run_folder: Path) -> None:
    """Put the files of the run in their places, and then the checkpoints, the newest first: they make it a run's."""
    hidden = checkpoints.partial_folder(run_folder, copies[0].step)
    for name in copies[0].files:
        if name.startswith(OF_RUN):
            target = run_folder / name.removeprefix(OF_RUN)
            target.parent.mkdir(parents=True, exist_ok=True)
            (hidden / _place_of(name)).replace(target)
    shutil.rmtree(hidden / BESIDE, ignore_errors=True)
    for copy in copies:
        checkpoints.publish(
            checkpoints.partial_folder(run_folder, copy.step), checkpoints.step_folder(run_folder, copy.step)
        )
