"""Copies of a run's checkpoints in an object store, or wherever else `fsspec` writes. No torch.

URL/step_000000100/checkpoint/…    the files of the checkpoint
URL/step_000000100/run/…           what belongs to it of the run folder: configuration, ledger, log, pins, …
URL/step_000000100/copied.json     written last: all of these with size and hash; without it there is no copy
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cclm.run import checkpoints
from cclm.run.causes import retried
from cclm.run.checkpoints import FileRecord
from cclm.run.status import DONE_NAME, run_identity
from cclm.shardfile.cache import FetchError, fetch, open_system

COPIED = "copied.json"
OF_CHECKPOINT, OF_RUN = "checkpoint/", "run/"
RUN_FILES = ("*.yaml", "*.json", "*.jsonl", "quarantine/*.jsonl", f"{checkpoints.FOLDER}/{checkpoints.PINNED}")
"""What comes along of a run folder. Lines of later steps are no harm: who goes on from a checkpoint cuts them off."""
LEFT_BEHIND = (DONE_NAME, "stopped.json")
FLAT = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "az", "oss", "memory"})
"""Protocols without folders: to make one could make a bucket of a name that is mistyped."""
_STEP_NAME = re.compile(r"step_\d{9,}")


@dataclass(frozen=True, kw_only=True)
class Copy:
    """A complete copy."""

    step: int
    files: Mapping[str, FileRecord]
    """By path below the copy's folder."""
    run: str = ""
    """Whose it is (`run_identity`); "": of a version that did not say it."""


class Store:
    """The copies at a URL."""

    def __init__(self, url: str) -> None:
        """Find out how the URL is spoken to (errors: `open_system`)."""
        self.url = url.rstrip("/")
        self._system, root = open_system(self.url)
        self._root = root.rstrip("/")

    def check(self) -> None:
        """Write and remove a small file; raise FetchError if that cannot be done."""
        try:
            self._write("writable", b"cclm\n")
            self._system.rm_file(f"{self._root}/writable")
        except Exception as error:
            raise FetchError(
                where=self.url,
                expected="a place that can be read and written (checkpoint.copy_to)",
                got=f"{type(error).__name__}: {error}",
                do="Check the address and your credentials, or set checkpoint.copy_to to null.",
            ) from error

    def copies(self, on_damage: Callable[[int], None] = lambda step: None) -> dict[int, Copy]:
        """Return the complete copies by step; `on_damage` is told the steps of markers that cannot be read."""
        self._system.invalidate_cache()
        try:
            names = [str(path).rstrip("/").rpartition("/")[2] for path in self._system.ls(self._root, detail=False)]
        except FileNotFoundError:
            return {}
        found = (self._copy(name, on_damage) for name in sorted(names) if _STEP_NAME.fullmatch(name))
        return {one.step: one for one in found if one is not None}

    def _copy(self, name: str, on_damage: Callable[[int], None]) -> Copy | None:
        try:
            said = json.loads(self._system.cat_file(f"{self._root}/{name}/{COPIED}"))
            files = {str(path): FileRecord(**record) for path, record in said["files"].items()}
            return Copy(step=int(said["step"]), files=files, run=str(said.get("run", "")))
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, AttributeError):
            on_damage(checkpoints.step_of(Path(name)))
            return None

    def put(self, run_folder: Path, checkpoint: Path) -> Copy:
        """Copy a complete checkpoint, and what belongs to it of its run; the marker last. Raise OSError, or what the
        store's client raises, if it cannot be written, or the checkpoint is gone."""
        name, files = checkpoint.name, dict(checkpoints.read_marker(checkpoint).files)
        self.remove(checkpoints.step_of(checkpoint))
        for path in files:
            retried(partial(self._send, checkpoint / path, f"{name}/{OF_CHECKPOINT}{path}"))
        records = {f"{OF_CHECKPOINT}{path}": record for path, record in files.items()}
        marker = {OF_CHECKPOINT + checkpoints.MARKER: (checkpoint / checkpoints.MARKER).read_bytes()}
        for path, content in {**marker, **_run_files(run_folder)}.items():
            retried(partial(self._write, f"{name}/{path}", content))
            records[path] = FileRecord(size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
        copy = Copy(step=checkpoints.step_of(checkpoint), files=records, run=run_identity(run_folder))
        retried(partial(self._write, f"{name}/{COPIED}", json.dumps(asdict(copy), indent=1).encode()))
        return copy

    def set_aside(self, step: int) -> None:
        """Make a damaged copy none, so that the step is copied again when the run comes to it. Its files stay."""
        marker = f"{self._root}/{checkpoints.step_folder(Path(), step).name}/{COPIED}"
        if self._system.exists(marker):
            self._system.mv(marker, f"{marker}.damaged")

    def remove(self, step: int) -> None:
        """Remove a copy, its marker first: half of one is none."""
        folder = f"{self._root}/{checkpoints.step_folder(Path(), step).name}"
        self._system.invalidate_cache()
        if self._system.exists(f"{folder}/{COPIED}"):
            self._system.rm_file(f"{folder}/{COPIED}")
        if self._system.exists(folder):
            self._system.rm(folder, recursive=True)

    def fetch(self, copy: Copy, path: str, target: Path) -> None:
        """Bring a file of a copy here, verified (errors: `fetch`)."""
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = checkpoints.step_folder(Path(), copy.step).name
        fetch(f"{self.url}/{folder}/{path}", target, copy.files[path].sha256)

    def _send(self, source: Path, name: str) -> None:
        self._make_folder(name)
        self._system.put_file(str(source), f"{self._root}/{name}")

    def _write(self, name: str, content: bytes) -> None:
        self._make_folder(name)
        self._system.pipe_file(f"{self._root}/{name}", content)

    def _make_folder(self, name: str) -> None:
        protocol: Any = self._system.protocol
        if not FLAT & {protocol, *(() if isinstance(protocol, str) else protocol)}:
            self._system.makedirs(f"{self._root}/{name}".rpartition("/")[0], exist_ok=True)


def _run_files(run_folder: Path) -> dict[str, bytes]:
    found = {path for pattern in RUN_FILES for path in run_folder.glob(pattern)}
    names = sorted(path.relative_to(run_folder).as_posix() for path in found)
    return {f"{OF_RUN}{name}": (run_folder / name).read_bytes() for name in names if name not in LEFT_BEHIND}


def copy_run(run_folder: Path, url: str, keep: int, keep_every: int | None = None) -> list[int]:
    """Copy a run's complete checkpoints that are not copied yet, newest first; then remove copies by the same rule.
    Return the steps that were copied. Copies of later steps than any here stay, for a folder may be damaged, or older
    than they are; but not those of steps that the run has gone back from. Raise FetchError if copies of another run lie
    there."""
    store, made, pins = Store(url), list[int](), checkpoints.read_pins(run_folder)
    copies = store.copies()
    here = {checkpoints.step_of(path): path for path in checkpoints.complete_checkpoints(run_folder)}
    if not here:
        return []
    identity = run_identity(run_folder)  # it comes along, too
    if any(one.run not in ("", identity) for one in copies.values()):
        raise FetchError(
            where=url,
            expected="copies of this run (checkpoint.copy_to)",
            got="those of another one",
            do="Give each run a URL of its own.",
        )
    for step, path in sorted(here.items(), reverse=True):
        marker = copies[step].files[OF_CHECKPOINT + checkpoints.MARKER] if step in copies else None
        if marker is not None and marker == checkpoints.record_file(path / checkpoints.MARKER):
            continue
        try:
            copies[step] = store.put(run_folder, path)
        except (FileNotFoundError, checkpoints.DamagedError):  # it was pruned meanwhile; anything else is an error
            if path in checkpoints.complete_checkpoints(run_folder):
                raise
            store.remove(step)
        else:
            made.append(step)
    steps, newest = sorted({*copies, *here}), max(here)
    back = checkpoints.read_rollbacks(run_folder)
    goes = [step for step in steps if step > newest and any(one.to < step <= one.step for one in back)]
    goes += checkpoints.removable([step for step in steps if step <= newest], pins, keep, keep_every)
    for step in goes:
        if step in copies and step not in here:
            store.remove(step)
    return made
