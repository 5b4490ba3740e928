"""Where checkpoints lie and when one counts. No torch.

    run/checkpoints/step_000000100/            complete: its marker lists every file with size and hash
    run/checkpoints/step_000000200/
    run/checkpoints/.step_000000300.partial/   being written, or left by a killed run; never looked at

A folder gets its visible name only after all ranks' files and the marker are on disk, so a kill at any moment leaves
the older checkpoint the newest one.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from cclm.errors import CheckpointError
from cclm.files import atomic

FOLDER = "checkpoints"
MARKER = "complete"
FORMAT_VERSION = 1
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
    """Ranks that wrote it."""
    files: Mapping[str, FileRecord]
    """By path inside the checkpoint, without the marker itself."""
    format_version: int = FORMAT_VERSION


def step_folder(run_folder: Path, step: int) -> Path:
    """The visible folder of a step's checkpoint."""
    return run_folder / FOLDER / f"step_{step:09d}"


def partial_folder(run_folder: Path, step: int) -> Path:
    """The hidden folder in which it is written."""
    return run_folder / FOLDER / f".step_{step:09d}.partial"


def complete_checkpoints(run_folder: Path) -> list[Path]:
    """Checkpoints whose marker is there and whose files have the sizes it says, oldest first."""
    folder = run_folder / FOLDER
    if not folder.is_dir():
        return []
    named = [(int(match[1]), path) for path in folder.iterdir() if (match := _STEP_NAME.fullmatch(path.name))]
    return [path for _, path in sorted(named) if not _flaws(path)]


def newest_complete(run_folder: Path) -> Path | None:
    """The checkpoint to resume from, or None. Never one that is incomplete."""
    found = complete_checkpoints(run_folder)
    return found[-1] if found else None


def read_marker(checkpoint: Path) -> Marker:
    """Read `complete`. Raises CheckpointError if it is missing or unreadable."""
    try:
        raw = json.loads((checkpoint / MARKER).read_text(encoding="utf-8"))
        files = {str(name): FileRecord(**record) for name, record in raw.pop("files").items()}
        marker = Marker(files=files, **raw)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(
            expected=f"a readable marker file {MARKER!r}",
            got=f"{type(error).__name__}: {error}",
            do="This checkpoint was not finished, or is damaged: resume from an older one.",
            where=str(checkpoint),
        ) from error
    if marker.format_version != FORMAT_VERSION:
        raise CheckpointError(
            expected=f"checkpoint format {FORMAT_VERSION}",
            got=str(marker.format_version),
            do="Use the version of cclm that wrote it.",
            where=str(checkpoint),
        )
    return marker


def write_marker(folder: Path, marker: Marker) -> None:
    """Write `complete` and sync it; the last write into a checkpoint."""
    atomic.replace_text(folder / MARKER, json.dumps(asdict(marker), indent=1, sort_keys=True) + "\n", durable=True)


def check_sizes(checkpoint: Path, marker: Marker) -> None:
    """Raise CheckpointError if a file is missing or has another size."""
    _raise_flaws(checkpoint, _size_flaws(checkpoint, marker))


def check_hashes(checkpoint: Path, marker: Marker, names: Iterable[str]) -> None:
    """Raise CheckpointError if one of the named files has other bytes than were written."""
    flaws = []
    for name in names:
        if record_file(checkpoint / name) != marker.files[name]:
            flaws.append(f"{name} has another sha256")
    _raise_flaws(checkpoint, flaws)


def record_file(path: Path) -> FileRecord:
    """Size and hash of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    return FileRecord(size_bytes=path.stat().st_size, sha256=digest.hexdigest())


def list_files(folder: Path) -> list[str]:
    """Paths of all files below `folder`, relative, sorted; without the marker."""
    found = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    return sorted(name for name in found if name != MARKER)


def publish(partial: Path, visible: Path) -> None:
    """Give a finished partial folder its visible name, durably. An incomplete folder of that name is replaced."""
    if visible.exists():
        remove_checkpoint(visible)
    atomic.publish(partial, visible)


def remove_checkpoint(checkpoint: Path) -> None:
    """Remove a checkpoint; a kill half-way leaves nothing that looks like one."""
    hidden = checkpoint.with_name(f".{checkpoint.name}.removed")
    shutil.rmtree(hidden, ignore_errors=True)
    checkpoint.rename(hidden)
    shutil.rmtree(hidden)


def remove_leftovers(run_folder: Path) -> list[Path]:
    """Remove what killed runs left half-written or half-removed; return what was there. One process only."""
    folder = run_folder / FOLDER
    found = [path for path in folder.iterdir() if _LEFTOVER_NAME.fullmatch(path.name)] if folder.is_dir() else []
    for path in found:
        shutil.rmtree(path)
    return sorted(found)


def prune(run_folder: Path, keep: int) -> list[Path]:
    """Remove all but the `keep` newest complete checkpoints; return the removed ones."""
    assert keep >= 1, "at least the newest checkpoint stays"
    removed = complete_checkpoints(run_folder)[:-keep]
    for path in removed:
        remove_checkpoint(path)
    return removed


def _flaws(checkpoint: Path) -> list[str]:
    try:
        return _size_flaws(checkpoint, read_marker(checkpoint))
    except CheckpointError as error:
        return [str(error)]


def _size_flaws(checkpoint: Path, marker: Marker) -> list[str]:
    flaws = []
    for name, record in marker.files.items():
        path = checkpoint / name
        size_bytes = path.stat().st_size if path.is_file() else None
        if size_bytes != record.size_bytes:
            flaws.append(f"{name}: {'missing' if size_bytes is None else f'{size_bytes} bytes'}")
    return flaws


def _raise_flaws(checkpoint: Path, flaws: list[str]) -> None:
    if flaws:
        raise CheckpointError(
            expected="every file as its marker says",
            got="; ".join(flaws),
            do=_advice(checkpoint),
            where=str(checkpoint),
        )


def _advice(checkpoint: Path) -> str:
    """What to do about a damaged checkpoint: hashes are not looked at when the newest one is chosen."""
    run_folder = checkpoint.parent.parent
    if checkpoint.parent.name != FOLDER:
        return "The files are damaged: copy them again, and check the disk."
    older = [path for path in complete_checkpoints(run_folder) if path.name < checkpoint.name]
    if not older:
        then = "no older one is complete, so the same command then starts from the beginning"
    else:
        then = f"the same command then goes on from step {read_marker(older[-1]).step}"
    return f"The checkpoint is damaged: remove this folder ({then}), and check the disk."
