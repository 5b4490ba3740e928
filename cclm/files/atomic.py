"""Files that are whole or not there: written under a hidden name, then renamed. Standard library only.

A rename survives the death of the process; what is durable is also synced, so that it survives the death of the machine
(slow on network file systems: for shards, checkpoints and markers, not for what is written every few seconds).
"""

from __future__ import annotations

import os
import socket
from pathlib import Path


def replace_text(path: Path, text: str, *, durable: bool = False) -> None:
    """Make `text` (UTF-8) the content of `path`: a reader sees the old text or the new one, never half of it."""
    replace_bytes(path, text.encode("utf-8"), durable=durable)


def replace_bytes(path: Path, data: bytes, *, durable: bool = False) -> None:
    """Make `data` the content of `path`; missing folders are made. Processes of any machine may write it at once.

    Raises:
        OSError: with the name of a file, whatever failed; `path` is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.partial")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise
    if durable:
        sync(path.parent)


def temporary_path(path: Path) -> Path:
    """The hidden name under which one process lets `path` grow; always the same, so a kill leaves no second one."""
    return path.with_name(f".{path.name}.partial")


def publish(temporary: Path, path: Path) -> None:
    """Give a written and synced file (or folder) its real name, durably."""
    temporary.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Force a file, or a folder's list of names, to disk: without the latter a rename may be lost."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
