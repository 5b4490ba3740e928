"""Whole files on the node's own disk, shared by all its processes, up to a size.

    get(url) ─► there? ─► yes: touch it
                └─ no ─► lock NAME.partial ─► there by now? ─► make room ─► fetch, verify ─► rename to NAME

The lock is an advisory lock (flock) on the growing file itself. The system lets go of it when its holder dies, however
it dies, so there is no lock file that could be left behind; what a killed process had of a file is written over by
the next one that wants it, and swept away by the next one that opens the cache. Eviction removes the files used
longest ago. A process that has one of them open keeps its content, so nobody needs to be asked.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from cclm.errors import CclmError, ConfigError
from cclm.shardfile.fetch import NO_ROOM, FetchError, fetch
from cclm.shardfile.options import CacheConfig

PARTIAL = ".partial"
FOLDER_VARIABLE = "CCLM_SHARD_CACHE"
NUM_THREADS = 2
"""Background downloads of one process."""


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
    """The cache of a node. Any number of processes may use the same folder at once.

    Raises (when made):
        ConfigError: the folder cannot be written.
    """

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

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_queue": None, "_pid": 0}

    def get(self, wanted: Wanted) -> Path:
        """Return the local file; fetch it first if it is not there, or wait for the process that is fetching it.

        Raises:
            FetchError: it cannot be had, or there is no room for it.
        """
        if self._touch(wanted.path):
            return wanted.path
        wanted.path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(wanted.path) as partial:
            if partial is not None:
                self._make_room(wanted)
                try:
                    fetch(wanted.url, partial, wanted.sha256, attempts=self.config.attempts)
                except OSError as error:
                    raise _no_room(wanted.url, error) from error
                partial.replace(wanted.path)
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

    def _touch(self, path: Path) -> bool:
        try:
            os.utime(path)
        except FileNotFoundError:
            return False
        return True

    def _make_room(self, wanted: Wanted) -> None:
        """Remove the files used longest ago until the wanted one fits."""
        limit = self.config.size_bytes
        if wanted.size_bytes > limit:
            raise FetchError(
                where=wanted.url,
                expected=f"files that fit into a cache of {limit:,} bytes",
                got=f"{wanted.size_bytes:,} bytes",
                do="Raise data.cache.size_bytes.",
            )
        with _lock(self.folder):
            files = sorted(self._files(), key=lambda item: item[0])
            total = sum(size for _, size, _ in files) + wanted.size_bytes
            for _, size, path in files:
                if total <= limit:
                    return
                path.unlink(missing_ok=True)
                total -= size

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        """Yield (last use, size, path) of the whole files. Manifests stay: they are small, and say what a set is."""
        for path in self.folder.glob("*/*"):
            try:
                status = path.stat()
            except FileNotFoundError:  # another process evicts too
                continue
            if not path.name.endswith((PARTIAL, ".json")):
                yield status.st_mtime, status.st_size, path

    def _sweep(self) -> None:
        """Remove what killed processes left: growing files that nobody holds."""
        for path in self.folder.glob(f"*/*{PARTIAL}"):
            try:
                descriptor = os.open(path, os.O_RDWR)
            except FileNotFoundError:
                continue
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_still(descriptor, path):
                    path.unlink()
            except BlockingIOError:
                pass  # it is growing
            finally:
                os.close(descriptor)


def _no_room(url: str, error: OSError) -> FetchError:
    full = error.errno in NO_ROOM
    return FetchError(
        where=url,
        expected="room on the cache's disk" if full else "a cache folder that can be written",
        got=error.strerror or repr(error),
        do="Free some, lower data.cache.size_bytes, or set data.cache.folder to another disk.",
    )


@contextmanager
def _locked(path: Path) -> Iterator[Path | None]:
    """Hold the right to make `path`, and yield the file to write; None if somebody else has made it."""
    partial = path.with_name(path.name + PARTIAL)
    while True:
        descriptor = os.open(partial, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if path.exists():
                if _is_still(descriptor, partial):
                    partial.unlink()
                yield None
                return
            if not _is_still(descriptor, partial):  # swept, or renamed and evicted, while we waited
                continue
            try:
                yield partial
            except BaseException:
                partial.unlink(missing_ok=True)
                raise
            return
        finally:
            os.close(descriptor)


def _is_still(descriptor: int, path: Path) -> bool:
    """Return whether the open file is the one of that name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Hold a lock of the folder, which can be locked like a file: one process at a time."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
