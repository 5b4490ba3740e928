"""Processes that work on a build: as many as wanted, none of them longer than the one that started them."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

from cclm.errors import ConfigError, DataError
from cclm.files.atomic import make_folder
from cclm.files.lock import locked_folder
from cclm.rows.guard import bad, optional_library
from cclm.run.signals import die_with_parent

Job = TypeVar("Job")
Result = TypeVar("Result")

RunJobs = Callable[[Callable[[Any], Any], Sequence[Any]], Iterator[tuple[Any, Any]]]
"""Runs a function on many jobs, in any processes: `Workers.run`."""


@contextmanager
def only_builder(folder: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold a lock on a folder, made if missing, so that two builds never write into it at once; a killed build's lock
    is gone with it. Shared, for one of many tasks of one build: others may be at work, a whole build may not.
    ConfigError: another process builds there. CclmError: the folder cannot be made."""
    make_folder(folder)
    got, do = "one that is running", "Wait for it, or choose another --out."
    busy = ConfigError(expected="no other build in this folder", got=got, do=do, where=str(folder))
    with locked_folder(folder, busy, shared=shared):
        yield


class Workers:
    """Runs jobs in this process (one worker: the slow twin), or in a pool that lives as long as the context."""

    ahead = 2
    """Jobs that a worker is given at a time: a stopped build should not go on for long."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._pool: Any = None

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, error: object, *_: object) -> None:
        if self._pool is not None:
            is_asked = isinstance(error, type) and issubclass(error, KeyboardInterrupt)
            for worker in multiprocessing.active_children() if is_asked else ():
                worker.kill()  # nobody waits for the rest of its job: what is finished is kept
            self._pool.shutdown(cancel_futures=True)

    def run(self, function: Callable[[Job], Result], jobs: Sequence[Job]) -> Iterator[tuple[Job, Result]]:
        """Yield each job and its result as they finish; raise what the function does, or DataError (worker_died)."""
        if self._number <= 1 or len(jobs) <= 1:
            yield from ((job, function(job)) for job in jobs)
            return
        try:
            yield from self._run_in_pool(function, jobs)
        except BrokenProcessPool as error:
            raise _worker_died("often: out of memory") from error

    def _run_in_pool(self, function: Callable[[Job], Result], jobs: Sequence[Job]) -> Iterator[tuple[Job, Result]]:
        if self._pool is None:
            self._pool = self._open()
        pending: dict[Future[Result], Job] = {}
        waiting = iter(jobs)
        while True:
            for job in itertools.islice(waiting, self.ahead * self._number - len(pending)):
                pending[self._submit(function, job)] = job
            if not pending:
                return
            for future in wait(pending, return_when=FIRST_COMPLETED).done:
                yield pending.pop(future), future.result()

    def _submit(self, function: Callable[[Job], Result], job: Job) -> Future[Result]:
        # Ctrl-C reaches every process of the terminal. A worker, which may begin here, inherits that it is not for it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            future: Future[Result] = self._pool.submit(function, job)
            return future
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _open(self) -> Any:
        # Spawned, not forked: pyarrow and rich have threads, and a forked child may inherit a lock that nobody opens.
        context = multiprocessing.get_context("spawn")
        # A pool's workers would outlive a killed build, and finish shards under the hands of the one that goes on.
        try:
            return ProcessPoolExecutor(self._number, context, initializer=die_with_parent, initargs=(os.getpid(),))
        except OSError as error:
            error.filename = error.filename or "/dev/shm"  # where semaphores lie; no room on the set's disk is another
            raise


class RayWorkers(Workers):
    """Runs jobs as tasks of a Ray cluster whose nodes share the file system; the cluster is the one that RAY_ADDRESS
    names, or a local one. MissingDependencyError: without ray."""

    ahead = 1

    def __init__(self, number: int) -> None:
        super().__init__(number)
        do = 'pip install "cclm-pretraining[ray]", or leave --executor out.'
        self._ray = optional_library("ray", "for --executor ray", do=do)

    def run(self, function: Callable[[Job], Result], jobs: Sequence[Job]) -> Iterator[tuple[Job, Result]]:
        """Yield each job and its result as they finish (see `Workers.run`)."""
        errors = self._ray.exceptions
        try:
            yield from self._run_in_pool(function, jobs)
        except errors.RayTaskError as error:
            raise error.cause from error
        except errors.RayError as error:
            raise _worker_died(type(error).__name__) from error

    def _open(self) -> Any:
        checkout = str(Path(__file__).resolve().parents[1])
        self._ray.init(log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": checkout}})
        return _RayPool(self._ray)


class _RayPool:
    def __init__(self, ray: Any) -> None:
        self._ray, self._call = ray, ray.remote(max_retries=3)(_call)

    def submit(self, function: Callable[[Job], Result], job: Job) -> Future[Result]:
        future: Future[Result] = self._call.remote(function, job).future()
        return future

    def shutdown(self, *, cancel_futures: bool) -> None:
        self._ray.shutdown()


def _call(function: Callable[[Job], Result], job: Job) -> Result:
    return function(job)


def _worker_died(how: str) -> DataError:
    do = "Run the same command again: what is finished is kept. Fewer --workers need less memory."
    return bad("worker_died", "worker processes that live", f"one that was killed ({how})", do=do)


EXECUTORS: Final[dict[str, type[Workers]]] = {"processes": Workers, "ray": RayWorkers}
"""By the word of `--executor`."""
