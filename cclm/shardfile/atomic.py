"""Files that are whole or not there, also after a power cut."""

from __future__ import annotations

import os
from pathlib import Path


def temporary_path(path: Path) -> Path:
    """Return the hidden name under which `path` grows. Always the same, so that a killed build leaves no second one."""
    return path.with_name(f".{path.name}.partial")


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk: without it a rename may be lost."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(temporary: Path, path: Path) -> None:
    """Give a written and synced file its real name."""
    temporary.replace(path)
    sync_folder(path.parent)


def write_atomically(path: Path, data: bytes) -> None:
    """Write a small file under a hidden name, sync it, and rename it."""
    temporary = temporary_path(path)
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    publish(temporary, path)
