"""Processes that work on a build: as many as wanted, none of them longer than the one that started them."""

from __future__ import annotations

import fcntl
import itertools
import multiprocessing
import multiprocessing.connection
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from cclm.errors import ConfigError, DataError

Job = TypeVar("Job")
Result = TypeVar("Result")


@contextmanager
def only_builder(folder: Path) -> Iterator[None]:
    """Hold a lock on a folder, so that two builds never write into it at once. A killed build's lock is gone with it.

    Raises:
        ConfigError: another process builds there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                expected="no other build in this folder",
                got="one that is running",
                do="Wait for it, or choose another --out.",
                where=str(folder),
            ) from error
        except OSError:
            pass  # a file system without locks: nothing can be known
        yield
    finally:
        os.close(descriptor)


def run_jobs(function: Callable[[Job], Result], jobs: Sequence[Job], workers: int) -> Iterator[tuple[Job, Result]]:
    """Yield each job and its result as they finish: in this process (the slow twin), or in `workers` others.

    Raises:
        DataError: reason worker_died.
    """
    if workers <= 1:
        for job in jobs:
            yield job, function(job)
        return
    # Spawned, not forked: pyarrow and rich have threads, and a forked child may inherit a lock that nobody opens.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=die_with_parent) as pool:
        pending: dict[Future[Result], Job] = {}
        waiting = iter(jobs)
        try:
            while True:
                # A few jobs ahead only: each carries its drafts through a pipe.
                for job in itertools.islice(waiting, 2 * workers - len(pending)):
                    pending[pool.submit(function, job)] = job
                if not pending:
                    return
                for future in wait(pending, return_when=FIRST_COMPLETED).done:
                    yield pending.pop(future), future.result()
        except BrokenProcessPool as error:
            raise DataError(
                reason="worker_died",
                expected="worker processes that live",
                got="one that was killed (often: out of memory)",
                do="Run the same command again: finished shards are kept. Fewer --workers need less memory.",
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def die_with_parent() -> None:
    """End this worker when the build is killed.

    The pool's workers would wait for ever, and finish shards under the hands of the build that goes on.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
