"""Whole files on the node's own disk, shared by all its processes, up to a size.

    get(url) ─► there? ─► yes: touch it
                └─ no ─► lock NAME.lock ─► there by now? ─► make room ─► fetch NAME.growing, verify ─► rename to NAME

The system lets go of a lock (flock) when its holder dies, however it dies; the empty lock file that stays means
nothing. What a killed process had of a file is written over by the next one that wants it, and swept away by the next
one that opens the cache. Eviction removes the files used longest ago. A process that has one of them open keeps its
content, so nobody needs to be asked.

`fetch` reads http(s)://, s3://, gs://, hf:// and whatever else `fsspec` does: whole, verified, tried again. An error
that may pass (a broken connection, a server in trouble, other bytes than the manifest says) is waited out with a
growing pause; one that will not (no such file, no permission, no room) is told at once.
"""

from __future__ import annotations

import fcntl
import os
import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from cclm.errors import Cause, CclmError, ConfigError, MissingDependencyError
from cclm.files.atomic import file_sha256
from cclm.run.causes import DISK_FULL_ERRNOS, cause_of
from cclm.shardfile.options import CacheConfig

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
PACKAGES = {"http": "aiohttp", "https": "aiohttp", "s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "hf": "huggingface_hub"}
"""What `fsspec` needs for a protocol."""
LASTING = (FileNotFoundError, PermissionError, IsADirectoryError)
"""Errors of a file system that no second try mends."""
PARTIAL, LOCK = ".growing", ".lock"
"""Not ".partial": the version before locks such files themselves, and may share the folder."""
FOLDER_VARIABLE = "CCLM_SHARD_CACHE"
NUM_THREADS = 2
"""Background downloads of one process."""


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


def cache_folder(config: CacheConfig) -> Path:
    """Return the cache's folder, with the user's number in its name where users could meet."""
    if config.folder is not None:
        return Path(config.folder)
    named = os.environ.get(FOLDER_VARIABLE)
    return Path(named) if named else Path(tempfile.gettempdir()) / f"cclm-shards-{os.getuid()}"


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A remote file and its place in the cache."""

    url: str
    path: Path
    size_bytes: int
    """0 if it is not known."""
    sha256: str | None


class FileCache:
    """The cache of a node, in a folder that its processes may use at once (ConfigError: it cannot be written)."""

    def __init__(self, config: CacheConfig) -> None:
        self.config, self.folder = config, cache_folder(config)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._sweep()
        except OSError as error:
            raise ConfigError(
                where=str(self.folder),
                expected="a cache folder that can be written",
                got=error.strerror or repr(error),
                do=f"Set data.cache.folder or ${FOLDER_VARIABLE} to a folder on a disk of the node.",
            ) from error
        self._queue: SimpleQueue[Wanted] | None = None
        self._pid = 0

    def get(self, wanted: Wanted) -> Path:
        """Return the local file; fetch it, or wait for who does (FetchError: it cannot be had, or has no room)."""
        if _touch(wanted.path):
            return wanted.path
        wanted.path.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(wanted.path):
            if _touch(wanted.path):  # somebody else has fetched it
                return wanted.path
            self._make_room(wanted)
            partial = wanted.path.with_name(wanted.path.name + PARTIAL)
            try:
                fetch(wanted.url, partial, wanted.sha256, attempts=self.config.attempts)
                partial.replace(wanted.path)
            except OSError as error:
                full = error.errno in DISK_FULL_ERRNOS
                raise FetchError(
                    where=wanted.url,
                    expected="room on the cache's disk" if full else "a cache folder that can be written",
                    got=error.strerror or repr(error),
                    do="Free some, lower data.cache.size_bytes, or set data.cache.folder to another disk.",
                ) from error
            finally:
                partial.unlink(missing_ok=True)
        return wanted.path

    def prefetch(self, wanted: Wanted) -> None:
        """Fetch in the background. Errors are left to the `get` that will need the file."""
        if self._queue is None or self._pid != os.getpid():  # threads do not survive a fork
            self._queue, self._pid = SimpleQueue(), os.getpid()
            for _ in range(NUM_THREADS):
                threading.Thread(target=self._serve, args=(self._queue,), daemon=True).start()
        self._queue.put(wanted)

    def _serve(self, queue: SimpleQueue[Wanted]) -> None:
        while True:
            try:
                self.get(queue.get())
            except CclmError:
                continue  # `get` will meet it again and tell it

    def _make_room(self, wanted: Wanted) -> None:
        limit = self.config.size_bytes
        if wanted.size_bytes > limit:
            raise FetchError(
                where=wanted.url,
                expected=f"files that fit into a cache of {limit:,} bytes",
                got=f"{wanted.size_bytes:,} bytes",
                do="Raise data.cache.size_bytes.",
            )
        with file_lock(self.folder / "cache"):
            files = sorted(self._files(), key=lambda item: item[0])
            total = sum(size for _, size, _ in files) + wanted.size_bytes
            for _, size, path in files:
                if total <= limit:
                    return
                path.unlink(missing_ok=True)
                total -= size

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        """Yield (last use, size, path) of the whole files. Manifests stay: they are small, and say what a set
        is; and arrays (of a teacher's features), which are mapped into memory."""
        for path in self.folder.glob("*/*"):
            try:
                status = path.stat()
            except FileNotFoundError:  # another process evicts too
                continue
            if not path.name.endswith((PARTIAL, LOCK, ".json", ".npy")):
                yield status.st_mtime, status.st_size, path

    def _sweep(self) -> None:
        """Remove what killed processes left: growing files that nobody holds."""
        for partial in self.folder.glob(f"*/*{PARTIAL}"):
            with suppress(BlockingIOError), file_lock(partial.with_suffix(""), fcntl.LOCK_NB):
                partial.unlink(missing_ok=True)


def _touch(path: Path) -> bool:
    """Note that a file is used; return whether it is there."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return True


@contextmanager
def file_lock(path: Path, flags: int = 0) -> Iterator[None]:
    """Hold the lock beside `path`: one process at a time (BlockingIOError with LOCK_NB, if another one has it)."""
    descriptor = os.open(f"{path}{LOCK}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | flags)
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # also for a child that was forked meanwhile, and has the descriptor
        os.close(descriptor)
