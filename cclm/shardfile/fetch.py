"""Files from http(s)://, s3://, gs://, hf:// and whatever else `fsspec` reads: whole, verified, tried again.

An error that may pass (a broken connection, a server in trouble, other bytes than the manifest says) is waited out
with a growing pause; one that will not (no such file, no permission, no room) is told at once.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cclm.errors import Cause, CclmError, MissingDependencyError
from cclm.files.atomic import file_sha256
from cclm.run.causes import cause_of

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
PACKAGES = {"http": "aiohttp", "https": "aiohttp", "s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "hf": "huggingface_hub"}
"""What `fsspec` needs for a protocol."""
LASTING = (FileNotFoundError, PermissionError, IsADirectoryError)
"""Errors of a file system that no second try mends."""


class FetchError(CclmError):
    """A remote file that cannot be had. It ends a run: to go on without it would be to lose samples in silence."""


class DamagedFileError(FetchError):
    """A remote file that is gone, or is not what it was."""


def fetch(
    url: str, target: Path, sha256: str | None = None, *, attempts: int = 5, pause: Callable[[float], None] = time.sleep
) -> None:
    """Copy a remote file onto `target`, whose content is replaced in place.

    `target` holds half a file while this runs and after an error. Without `sha256` its content is not checked.

    Raises:
        FetchError: it may not be read, or `attempts` were not enough.
        DamagedFileError: it is not there, or has another SHA-256.
        OSError: the disk of `target` is full; trying again would not help.
        MissingDependencyError: the protocol needs a package that is not installed.
    """
    system, path = open_system(url)
    problem, kind = "", FetchError
    for attempt in range(attempts):
        if attempt:
            pause(min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (attempt - 1)) * random.uniform(0.5, 1.0))
        try:
            system.get_file(path, str(target))
        except Exception as error:
            cause, problem, kind = cause_of(error), f"{type(error).__name__}: {error}", FetchError
            if cause is Cause.DISK_FULL:
                raise
            if cause is Cause.TRANSIENT or (isinstance(error, OSError) and not isinstance(error, LASTING)):
                continue
            raise (DamagedFileError if isinstance(error, FileNotFoundError) else FetchError)(
                where=url,
                expected="a file that exists and may be read",
                got=problem,
                do="Check the address and your credentials (see docs/data.md).",
            ) from error
        found = file_sha256(target) if sha256 is not None else None
        if found == sha256:
            return
        problem, kind = f"{target.stat().st_size} bytes with SHA-256 {found}", DamagedFileError
    raise kind(
        where=url,
        expected="the whole file" + (f" with SHA-256 {sha256}" if sha256 else ""),
        got=f"{problem} (attempt {attempts} of {attempts})",
        do="Check the network and the server, or verify the set where it is stored; started again, the run resumes.",
    )


def open_system(url: str) -> tuple[Any, str]:
    """Return the `fsspec` file system of a URL, and the file's path in it (errors: `fetch`)."""
    protocol = url.split("://", 1)[0]
    package = PACKAGES.get(protocol, protocol)
    try:
        import fsspec

        system, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise MissingDependencyError(
            where=url,
            expected=f"fsspec and {package}, to read {protocol}://",
            got=str(error),
            do=f"Install them: pip install fsspec {package}",
        ) from error
    except ValueError as error:
        raise FetchError(
            where=url,
            expected="a local path, or a URL with http(s)://, s3://, gs://, hf:// or another protocol of fsspec",
            got=str(error),
            do="Correct the address.",
        ) from error
    return system, str(path)
