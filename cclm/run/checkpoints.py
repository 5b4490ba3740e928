"""Where checkpoints lie and when one counts. No torch.

    run/checkpoints/step_000000100/            complete: its marker lists every file with size and hash
    run/checkpoints/step_000000200/
    run/checkpoints/.step_000000300.partial/   being written, or left by a killed run; never looked at
    run/checkpoints/step_000000200.damaged/    set aside: it was complete, but its bytes are no longer those written

A folder gets its visible name only after all ranks' files and the marker are on disk, so a kill at any moment leaves
the older checkpoint the newest one.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from cclm.errors import CheckpointError
from cclm.files import atomic
from cclm.files.lines import StepLines
from cclm.run.causes import retried

FOLDER = "checkpoints"
MARKER = "complete"
SAVE_NAME = "save_now"
"""In the run folder: asks for a checkpoint at once, whatever it holds."""
PINNED = "pinned.json"
"""Beside the checkpoints: which of them are the best, as an evaluation found."""
ROLLBACKS_FILE = "rollbacks.jsonl"
"""In the run folder: a line for each rollback, of all attempts."""
FORMAT_VERSION = 3
"""Of what is written."""
READABLE_VERSIONS = (2, 3)
"""2 has no digest of the marker; 1, which was never released, held DeepSpeed's pickles."""
DAMAGED = ".damaged"
"""Behind the name of a checkpoint that was set aside."""
USE_ANOTHER = "Use another checkpoint or copy it again, and check the disk; a run that resumes sets it aside by itself."
_STEP_NAME = re.compile(r"step_(\d{9,})")
_LEFTOVER_NAME = re.compile(r"\.step_\d{9,}\.(partial|removed)")


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """One file of a checkpoint."""

    size_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Marker:
    """What the file `complete` says."""

    step: int
    """Number of updates done: training goes on with this step."""
    world_size: int
    files: Mapping[str, FileRecord]
    """By path inside the checkpoint, without the marker itself."""
    format_version: int = FORMAT_VERSION

    @property
    def digest(self) -> str:
        """SHA-256 of all of it, which stands in the file, too: it lists every other file, and nobody lists it."""
        return _digest(asdict(self))


def step_folder(run_folder: Path, step: int) -> Path:
    """The visible folder of a step's checkpoint."""
    return run_folder / FOLDER / f"step_{step:09d}"


def partial_folder(run_folder: Path, step: int) -> Path:
    """The hidden folder in which it is written."""
    return run_folder / FOLDER / f".step_{step:09d}.partial"


def step_of(checkpoint: Path) -> int:
    """The step that a visible folder is named by."""
    return int(checkpoint.name.removeprefix("step_"))


def visible_checkpoints(run_folder: Path) -> list[Path]:
    """Return the folders with a checkpoint's name, oldest first, whatever is in them."""
    folder = run_folder / FOLDER
    paths = retried(lambda: [*folder.iterdir()] if folder.is_dir() else [])
    named = [(int(match[1]), path) for path in paths if (match := _STEP_NAME.fullmatch(path.name))]
    return [path for _, path in sorted(named)]


def complete_checkpoints(run_folder: Path) -> list[Path]:
    """Return the checkpoints whose marker is there and whose files have the sizes it says, oldest first."""
    return [path for path in visible_checkpoints(run_folder) if _is_complete(path)]


def newest_complete(run_folder: Path) -> Path | None:
    """Return the newest complete checkpoint, or None; a run that resumes also looks at hashes (`cclm.checkpoint`)."""
    return next((path for path in reversed(visible_checkpoints(run_folder)) if _is_complete(path)), None)


class DamagedError(CheckpointError):
    """A checkpoint whose bytes are not those that were written."""


def read_marker(checkpoint: Path) -> Marker:
    """Read `complete`. Raise DamagedError if it is missing, unreadable, or not as it was written, CheckpointError if
    another version of this library wrote it."""
    try:
        raw = json.loads(retried(lambda: (checkpoint / MARKER).read_bytes()))
        version, digest = raw["format_version"], raw.pop("digest", None)
        if digest is not None and digest != _digest(raw):
            raise ValueError("it has another digest")
        if version not in READABLE_VERSIONS:
            raise CheckpointError(
                expected=f"checkpoint format {' or '.join(map(str, READABLE_VERSIONS))}",
                got=str(version),
                do="Use the version of cclm that wrote it.",
                where=str(checkpoint),
            )
        files = {str(name): FileRecord(**record) for name, record in raw.pop("files").items()}
        return Marker(files=files, **raw)
    except CheckpointError:
        raise
    except (FileNotFoundError, NotADirectoryError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DamagedError(
            expected=f"a readable marker file {MARKER!r}",
            got=f"{type(error).__name__}: {error}",
            do=USE_ANOTHER,
            where=str(checkpoint),
        ) from error


def write_marker(folder: Path, marker: Marker) -> None:
    """Write `complete` and sync it; the last write into a checkpoint."""
    text = json.dumps({**asdict(marker), "digest": marker.digest}, indent=1, sort_keys=True) + "\n"
    retried(lambda: atomic.replace_text(folder / MARKER, text, durable=True))


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def damage_of(checkpoint: Path, rank: int = 0, world_size: int = 1) -> list[str]:
    """Return what is wrong with a checkpoint's files: marker, sizes, and the hashes of every world_size-th file. Raise
    CheckpointError if another version of this library wrote it, OSError if the storage does not answer: that is no
    damage."""
    try:
        marker = read_marker(checkpoint)
    except DamagedError as error:
        return [f"marker: {error.got}"]
    flaws = _size_flaws(checkpoint, marker)
    if not flaws:
        for name in sorted(marker.files)[rank::world_size]:
            if record_file(checkpoint / name) != marker.files[name]:
                flaws.append(f"{name} has another sha256")
    return flaws


def verify(checkpoint: Path) -> None:
    """Raise DamagedError if a checkpoint is not complete, or if one byte is another than was written."""
    if flaws := damage_of(checkpoint):
        raise DamagedError(
            expected="every file as its marker says", got="; ".join(flaws), do=USE_ANOTHER, where=str(checkpoint)
        )


def set_aside(checkpoint: Path) -> Path:
    """Rename a damaged checkpoint, so that nothing takes it for one any more; return its new place."""
    names = (f"{checkpoint.name}{DAMAGED}{number or ''}" for number in count())
    place = next(path for path in map(checkpoint.with_name, names) if not path.exists())
    atomic.publish(checkpoint, place)
    return place


def record_file(path: Path) -> FileRecord:
    """Return size and hash of a file."""
    return retried(lambda: FileRecord(size_bytes=path.stat().st_size, sha256=atomic.file_sha256(path)))


def list_files(folder: Path) -> list[str]:
    """Paths of all files below `folder`, relative, sorted; without the marker."""
    found = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    return sorted(name for name in found if name != MARKER)


def finish(partial: Path, visible: Path, marker: Marker, keep: int, keep_every: int | None = None) -> None:
    """Make a checkpoint of which all files are on disk complete, and remove what need not stay (`prune`). May be called
    again when it was cut short."""
    if not _is_complete(visible):
        for folder, _, _ in os.walk(partial):
            atomic.sync(Path(folder))
        write_marker(partial, marker)
        publish(partial, visible)
    prune(visible.parents[1], keep, keep_every)


def publish(partial: Path, visible: Path) -> None:
    """Give a finished partial folder its visible name, durably. A damaged folder of that name is set aside."""
    if visible.exists():
        set_aside(visible)
    atomic.publish(partial, visible)


def remove_checkpoint(checkpoint: Path) -> None:
    """Remove a checkpoint; a kill half-way leaves nothing that looks like one. What cannot be removed now (a file that
    another machine has open) goes with the leftovers of a later save."""
    hidden = checkpoint.with_name(f".{checkpoint.name}.removed")
    shutil.rmtree(hidden, ignore_errors=True)
    checkpoint.rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def remove_newer(run_folder: Path, step: int) -> list[Path]:
    """Remove the checkpoints of later steps, newest first, and return them: a kill leaves one to go on from."""
    found = [path for path in visible_checkpoints(run_folder) if step_of(path) > step]
    for path in reversed(found):
        remove_checkpoint(path)
    return found


def remove_leftovers(run_folder: Path) -> list[Path]:
    """Remove what killed runs left half-written or half-removed; return what was there. One process only."""
    folder = run_folder / FOLDER
    found = [path for path in folder.iterdir() if _LEFTOVER_NAME.fullmatch(path.name)] if folder.is_dir() else []
    for path in found:
        shutil.rmtree(path, ignore_errors=True)
    return sorted(found)


@dataclass(frozen=True, kw_only=True)
class Pins:
    """The evaluated steps of a run, written already or not, and how many of their checkpoints stay."""

    steps: Sequence[int] = ()
    """Best first."""
    keep: int = 1
    """So many of the best stay that are complete."""
    proven: int = 0
    """Of later steps it is not known yet whether they are healthy: so many of the best up to here stay besides."""

    def staying(self, there: Collection[int]) -> list[int]:
        """Return the steps that stay of those that are there, best first."""
        found = [step for step in self.steps if step in there]
        known = [step for step in found if step <= self.proven][: self.keep]
        return [*found[: self.keep], *(step for step in known if step not in found[: self.keep])]


def pin(run_folder: Path, pins: Pins) -> None:
    """Let the best checkpoints outlive all newer ones. One that is not complete yet takes no other's place before."""
    (run_folder / FOLDER).mkdir(parents=True, exist_ok=True)
    text = json.dumps({"steps": list(pins.steps), "keep": pins.keep, "proven": pins.proven}) + "\n"
    retried(lambda: atomic.replace_text(run_folder / FOLDER / PINNED, text, durable=True))


def read_pins(run_folder: Path) -> Pins:
    """Return what is pinned in a run; nothing if it was not evaluated, or does not say."""
    try:
        said = json.loads((run_folder / FOLDER / PINNED).read_bytes())
        if "steps" not in said:  # as versions wrote it that knew the best one only
            return Pins(steps=[int(said["step"])])
        return Pins(steps=[int(step) for step in said["steps"]], keep=int(said["keep"]), proven=int(said["proven"]))
    except (OSError, ValueError, KeyError, TypeError):
        return Pins()


def pinned(run_folder: Path) -> Path | None:
    """Return the best complete checkpoint of a run that was evaluated; None: there is none, or none is to stay."""
    pins = read_pins(run_folder)
    paths = (step_folder(run_folder, step) for step in (pins.steps if pins.keep else ()))
    return next((path for path in paths if _is_complete(path)), None)


def removable(steps: Sequence[int], pins: Pins, keep: int, keep_every: int | None = None) -> list[int]:
    """Return which of some complete checkpoints, ascending, go: not the newest, pinned ones, each `keep_every`-th."""
    assert keep >= 1, "at least the newest checkpoint stays"
    stays = {*steps[-keep:], *pins.staying(steps)}
    return [step for step in steps if step not in stays and (keep_every is None or step % keep_every)]


def prune(run_folder: Path, keep: int, keep_every: int | None = None) -> list[Path]:
    """Remove the complete checkpoints that need not stay (`removable`); return them."""
    steps = [step_of(path) for path in complete_checkpoints(run_folder)]
    removed = [step_folder(run_folder, step) for step in removable(steps, read_pins(run_folder), keep, keep_every)]
    for path in removed:
        remove_checkpoint(path)
    return removed


def _is_complete(checkpoint: Path) -> bool:
    try:
        return not _size_flaws(checkpoint, read_marker(checkpoint))
    except (CheckpointError, OSError):
        return False


def _size_flaws(checkpoint: Path, marker: Marker) -> list[str]:
    flaws = []
    for name, record in marker.files.items():
        size_bytes = retried(partial(_size_of, checkpoint / name))
        if size_bytes != record.size_bytes:
            flaws.append(f"{name}: {'missing' if size_bytes is None else f'{size_bytes} bytes'}")
    return flaws


def _size_of(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return None


@dataclass(frozen=True, kw_only=True)
class CheckpointFacts:
    """One complete checkpoint of a run."""

    step: int
    identity: str
    """SHA-256 of its marker, which holds the hash of every file: no two checkpoints share it."""


def identify(checkpoint: Path) -> CheckpointFacts:
    """Return the step and the identity of a complete checkpoint. Raise CheckpointError without a readable marker."""
    marker = read_marker(checkpoint)
    return CheckpointFacts(step=marker.step, identity=hashlib.sha256((checkpoint / MARKER).read_bytes()).hexdigest())


def identify_newest(run_folder: Path) -> CheckpointFacts | None:
    """Return the facts of the newest complete checkpoint of a run, or None if there is none."""
    found = newest_complete(run_folder)
    return None if found is None else identify(found)


@dataclass(frozen=True, kw_only=True)
class Rollback:
    """One return to an older checkpoint (`cclm.train.rollback`)."""

    step: int
    """The first step that was not done any more."""
    to: int
    """Updates of the checkpoint that the run went on from."""
    first: int
    """First step that is left out since then."""
    stop: int
    """The step behind the last of them."""


def read_rollbacks(run_folder: Path) -> list[Rollback]:
    """Return the rollbacks of a run, oldest first."""
    names = Rollback.__annotations__
    lines = StepLines(run_folder / ROLLBACKS_FILE).read()
    return [Rollback(**{name: int(line[name]) for name in names}) for line in lines]
