"""Files that are whole or not there: written under a hidden name, then renamed; folders to write in, and hashes.

A rename survives the death of the process; what is durable is also synced, so that it survives the death of the machine
(slow on network file systems: for shards, checkpoints and markers, not for what is written every few seconds).
"""

from __future__ import annotations

import hashlib
import os
import socket
from pathlib import Path

from cclm.errors import CclmError


def replace_text(path: Path, text: str, *, durable: bool = False) -> None:
    """Make `text` (UTF-8) the content of `path`: a reader sees the old text or the new one, never half of it."""
    replace_bytes(path, text.encode("utf-8"), durable=durable)


def replace_bytes(path: Path, data: bytes, *, durable: bool = False) -> None:
    """Make `data` the content of `path`; missing folders are made. Processes of any machine may write it at once.
    OSError: with the name of a file, whatever failed; `path` is as it was."""
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


def make_folder(folder: Path) -> Path:
    """Make the folder, with its parents, unless it is there; return it.
    CclmError: it cannot be made, or nothing can be written in it; raised from the OSError, if there is one."""
    expected, do = "a folder that can be made and written in", "Choose another folder, or mend its permissions."
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        got = f"{error.strerror or error} ({error.filename})"
        for place in (folder, *folder.parents):
            if place.is_symlink() and not place.exists():
                got = f"{place}, a link to {place.readlink()}, where there is nothing"
                do = "Make or mount what it leads to, or remove the link."
            elif place.exists() and not place.is_dir():
                got, do = f"{place}, which is a file", "Choose another folder, or move that file away."
        raise CclmError(where=str(folder), expected=expected, got=got, do=do) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise CclmError(where=str(folder), expected=expected, got="one that this user may not write in", do=do)
    return folder


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal; it is read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()
