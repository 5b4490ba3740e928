"""Processes that work on a build: as many as wanted, none of them longer than the one that started them."""

from __future__ import annotations

import itertools
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, TypeVar

from cclm.errors import ConfigError, DataError
from cclm.files.lock import locked_folder
from cclm.run.signals import die_with_parent
from shards.guard import optional_library

Job = TypeVar("Job")
Result = TypeVar("Result")


@contextmanager
def only_builder(folder: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold a lock on a folder, so that two builds never write into it at once. A killed build's lock is gone with it.

    Args:
        folder: what to lock; is made if missing.
        shared: for one of many tasks of one build: others may be at work, a whole build may not.

    Raises:
        ConfigError: another process builds there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    busy = ConfigError(
        expected="no other build in this folder",
        got="one that is running",
        do="Wait for it, or choose another --out.",
        where=str(folder),
    )
    with locked_folder(folder, busy, shared=shared):
        yield


class Workers:
    """Runs jobs in this process (one worker: the slow twin), or in a pool that lives as long as the context."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def run(self, function: Callable[[Job], Result], jobs: Sequence[Job]) -> Iterator[tuple[Job, Result]]:
        """Yield each job and its result as they finish.

        Raises:
            DataError: reason worker_died.
        """
        if self._number <= 1 or len(jobs) <= 1:
            for job in jobs:
                yield job, function(job)
            return
        if self._pool is None:
            # Spawned, not forked: pyarrow and rich have threads, and a forked child may inherit a lock that nobody
            # opens.
            context = multiprocessing.get_context("spawn")
            # A pool's workers would outlive a killed build, and finish shards under the hands of the one that goes on.
            self._pool = ProcessPoolExecutor(
                self._number, mp_context=context, initializer=die_with_parent, initargs=(os.getpid(),)
            )
        yield from self._run_in(self._pool, function, jobs)

    def _run_in(
        self, pool: ProcessPoolExecutor, function: Callable[[Job], Result], jobs: Sequence[Job]
    ) -> Iterator[tuple[Job, Result]]:
        pending: dict[Future[Result], Job] = {}
        waiting = iter(jobs)
        try:
            while True:
                # A few jobs ahead only: a stopped build should not go on for long.
                for job in itertools.islice(waiting, 2 * self._number - len(pending)):
                    pending[pool.submit(function, job)] = job
                if not pending:
                    return
                for future in wait(pending, return_when=FIRST_COMPLETED).done:
                    yield pending.pop(future), future.result()
        except BrokenProcessPool as error:
            raise _worker_died("often: out of memory") from error
        finally:
            for future in pending:
                future.cancel()


class RayWorkers:
    """Runs jobs as tasks of a Ray cluster whose nodes share the file system; the cluster is the one that RAY_ADDRESS
    names, or a local one.

    Raises:
        MissingDependencyError: without ray.
    """

    def __init__(self, number: int) -> None:
        do = 'pip install "cclm-pretraining[ray]", or leave --executor out.'
        self._ray = optional_library("ray", "for --executor ray", do=do)
        self._number, self._started = number, False

    def __enter__(self) -> RayWorkers:
        return self

    def __exit__(self, *_: object) -> None:
        if self._started:
            self._ray.shutdown()

    def run(self, function: Callable[[Job], Result], jobs: Sequence[Job]) -> Iterator[tuple[Job, Result]]:
        """Yield each job and its result as they finish.

        Raises:
            DataError: reason worker_died; and what the function raises.
        """
        ray = self._ray
        if not self._started:
            checkout = str(Path(__file__).resolve().parents[1])
            ray.init(log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": checkout}})
            self._started = True
        remote = ray.remote(max_retries=3)(function)
        pending: dict[Any, Job] = {}
        waiting = iter(jobs)
        while True:
            for job in itertools.islice(waiting, self._number - len(pending)):
                pending[remote.remote(job)] = job
            if not pending:
                return
            done, _ = ray.wait(list(pending), num_returns=1)
            for reference in done:
                yield pending.pop(reference), _result_of(ray, reference)


def _result_of(ray: Any, reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.RayError as error:
        raise _worker_died(type(error).__name__) from error


def _worker_died(how: str) -> DataError:
    return DataError(
        reason="worker_died",
        expected="worker processes that live",
        got=f"one that was killed ({how})",
        do="Run the same command again: what is finished is kept. Fewer --workers need less memory.",
    )


EXECUTORS: Final[dict[str, type[Workers] | type[RayWorkers]]] = {"processes": Workers, "ray": RayWorkers}
"""By the word of `--executor`."""
