"""Workers that die, hang, run out of something, or lose their rank."""

from __future__ import annotations

import errno
import io
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import wait
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cclm.data import workers as module
from cclm.data.workers import AHEAD, WorkerPool, state_of
from cclm.errors import Cause, CclmError, DataError
from cclm.run.causes import cause_of
from cclm.run.signals import STOP_SIGNALS

ROOT = Path(__file__).resolve().parents[3]


def pool(make: Callable[[int], Any], num_steps: int = 6, **options: Any) -> WorkerPool[Any]:
    defaults = {"num_workers": 2, "timeout_s": 60.0, "memory_bytes": 1 << 30}
    return WorkerPool(make, range(3, 3 + num_steps), **{**defaults, **options})


def pids(workers: WorkerPool[Any]) -> list[int]:
    return [worker.pid for worker in workers._workers]


def is_gone(pid: int) -> bool:
    return state_of(pid) in ("gone", "dead")


def wait_until(pid: int, state: str) -> None:
    deadline = time.monotonic() + 60
    while state_of(pid) != state:
        assert time.monotonic() < deadline, state_of(pid)
        time.sleep(0.01)


def test_values_come_in_order_and_whole() -> None:
    whole = torch.arange(24, dtype=torch.float32).view(2, 3, 4)

    def make(step: int) -> dict[str, Any]:
        return {
            "step": step,
            "permuted": whole.permute(2, 0, 1) + step,
            "slice": whole[:, 1:, ::2],
            "scalar": torch.tensor(step),
            "empty": torch.empty(0, 3, dtype=torch.int64),
            "bool": torch.tensor([True, False]),
            "bytes": torch.tensor([255], dtype=torch.uint8),
            "text": "…\0",
        }

    workers = pool(make)
    values = list(workers)
    assert [value["step"] for value in values] == [3, 4, 5, 6, 7, 8]
    for value in values:
        for name, expected in make(value["step"]).items():
            if isinstance(expected, torch.Tensor):
                assert torch.equal(value[name], expected) and value[name].dtype == expected.dtype
                value[name].zero_()  # it is ordinary memory
            else:
                assert value[name] == expected
    assert values[0]["permuted"].stride() == make(3)["permuted"].stride()
    assert not pids(workers)


def test_there_may_be_fewer_steps_than_workers() -> None:
    assert list(pool(lambda step: step, 2, num_workers=5)) == [3, 4]
    assert list(pool(lambda step: step, 0, num_workers=2)) == []


def test_workers_are_gone_after_the_last_value_and_when_nobody_wants_more() -> None:
    workers = pool(lambda step: step, 100)
    alive, values = pids(workers), iter(workers)
    assert next(values) == 3 and not any(map(is_gone, alive))
    values.close()  # type: ignore[attr-defined]
    assert all(map(is_gone, alive))


def test_how_far_ahead_depends_on_the_memory() -> None:
    def make(step: int) -> torch.Tensor:
        return torch.zeros(1 << 20, dtype=torch.uint8)

    for memory_bytes, ahead in ((1 << 30, AHEAD), (5 << 20, 2), (1 << 10, 1)):
        workers = pool(make, 40, memory_bytes=memory_bytes)
        values = iter(workers)
        next(values)
        assert workers._ahead == ahead
        assert [len(worker.asked) for worker in workers._workers] == [ahead, 1]
        assert len(list(values)) == 39


def test_an_exception_is_the_same_in_the_rank_and_knows_its_cause() -> None:
    class OddError(Exception):
        """One that cannot be pickled."""

    def make(step: int) -> int:
        if step == 3:
            raise OSError(errno.ENOSPC, "No space left on device", "cache/shard.tar")
        if step == 4:
            try:
                raise OSError(errno.EIO, "Input/output error")
            except OSError as error:
                raise DataError(reason="r", expected="a", got="b", do="c", where="d") from error
        if step == 5:
            raise OddError(step)
        return step

    caught = []
    for step in (3, 4, 5):
        with pytest.raises(Exception) as info:
            list(WorkerPool(make, range(step, 9), num_workers=1, timeout_s=60.0, memory_bytes=1))
        caught.append(info.value)
    assert isinstance(caught[0], OSError) and caught[0].filename == "cache/shard.tar"
    assert "in make" in str(caught[0].__cause__), "the worker's traceback"
    assert isinstance(caught[1], DataError) and str(caught[1]) == "d: expected a, got b. c" and caught[1].reason == "r"
    assert isinstance(caught[2], RuntimeError) and "OddError: 5" in str(caught[2])
    assert [cause_of(error) for error in caught] == [Cause.DISK_FULL, Cause.TRANSIENT, Cause.EXIT]


@pytest.mark.parametrize("how", ["killed by SIGKILL", "exit code 3"])
def test_a_worker_that_dies_is_named_with_its_end(how: str) -> None:
    def make(step: int) -> int:
        if step == 6 and how == "exit code 3":
            os._exit(3)
        if step == 6:
            os.kill(os.getpid(), signal.SIGKILL)
        return step

    workers = pool(make)
    second = pids(workers)[1]
    with pytest.raises(CclmError) as caught:
        list(workers)
    assert caught.value.cause is Cause.TRANSIENT
    assert f"worker 1 (process {second})" in caught.value.expected and how in caught.value.got
    assert caught.value.where == "step 6"


def test_a_death_is_noticed_where_the_kernel_keeps_no_record_of_it() -> None:
    """A parent that ignores SIGCHLD bequeaths that."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with pytest.raises(CclmError) as caught:
            list(pool(lambda step: os._exit(3)))
        assert list(pool(lambda step: step, 3)) == [3, 4, 5]
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert caught.value.cause is Cause.TRANSIENT


@pytest.mark.slow
def test_a_worker_that_hangs_is_noticed_and_says_where_it_stands(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "STACK_S", 60.0)
    reader, writer = os.pipe()

    def wait_for_a_lock_that_nobody_frees(step: int) -> int:
        if step == 3:
            os.write(writer, b"x")
            time.sleep(1000)
        return step

    workers = pool(wait_for_a_lock_that_nobody_frees, timeout_s=0.5)
    os.close(writer)  # so that a worker that died before would be noticed
    assert os.read(reader, 1)
    os.close(reader)
    wait_until(pids(workers)[0], "sleeping")
    with pytest.raises(CclmError) as caught:
        list(workers)
    assert caught.value.cause is Cause.TRANSIENT
    assert "sleeping" in caught.value.got and "in wait_for_a_lock_that_nobody_frees" in caught.value.got
    assert "in wait_for_a_lock_that_nobody_frees" in capfd.readouterr().err


def test_a_stack_is_read_to_its_foot_however_slowly_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = [
        b"Current thread 0x1 (most recent call first):",
        *(b"  File f, line 1 in " + name for name in (b"a", b"b")),
    ]
    lines = [b"", *frames, b"  File w, line 2 in _work\n"]
    stack, gone = os.memfd_create("stack"), 2**22 + 1
    write = lambda _: os.write(stack, lines.pop(0) + b"\n")  # noqa: E731
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=time.monotonic, sleep=write))
    worker = SimpleNamespace(pid=gone, stack=stack)
    assert module._ask_for_stack(worker).endswith(" in _work") and not lines  # type: ignore[arg-type]
    os.close(stack)


@pytest.mark.slow
def test_a_stopped_worker_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STACK_S", 0.1)

    def make(step: int) -> int:
        if step == 3:
            os.kill(os.getpid(), signal.SIGSTOP)
        return step

    workers = pool(make, timeout_s=0.5)
    wait_until(pids(workers)[0], "stopped by SIGSTOP")
    with pytest.raises(CclmError) as caught:
        list(workers)
    assert "stopped by SIGSTOP" in caught.value.got


@pytest.mark.slow
def test_a_long_wait_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()

    class Said(io.StringIO):
        def write(self, text: str) -> int:
            os.write(writer, b"x")
            return super().write(text)

    def make_once_it_was_said(step: int) -> int:
        os.read(reader, 1)
        return step

    said = Said()
    monkeypatch.setattr(module, "SAY_S", 0.5)
    monkeypatch.setattr(sys, "stderr", said)
    assert list(pool(make_once_it_was_said, 1)) == [3]
    assert "waits for step 3 of loader worker 0 (process" in said.getvalue()


@pytest.mark.slow
def test_a_slow_loader_may_stay_slow() -> None:
    """The deadline grows with what batches take."""

    def make(step: int) -> int:
        if step == 3:  # half a minute, by the worker's clock
            module.time = SimpleNamespace(monotonic=lambda: time.monotonic() + 30)  # type: ignore[assignment]
        else:
            time.sleep(1.5)
        return step

    workers = pool(make, 2, num_workers=1, timeout_s=0.2)
    wait([workers._workers[0].link])  # the first is there before anybody waits for it
    assert list(workers) == [3, 4]


def test_workers_outlive_the_signals_that_ask_their_rank_to_save() -> None:
    def make(step: int) -> int:
        for number in STOP_SIGNALS:
            os.kill(os.getpid(), number)
        return step

    assert list(pool(make)) == [3, 4, 5, 6, 7, 8]


def test_no_room_for_another_open_file_is_a_sentence() -> None:
    workers = pool(lambda step: step)
    taken, limits = [], resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, limits[1]))
        with pytest.raises(OSError):
            while True:
                taken.append(os.dup(0))
        with pytest.raises(CclmError) as caught:
            list(workers)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for descriptor in taken:
            os.close(descriptor)
    assert caught.value.got == "too many open files"


ORPHANS = """
import os, sys, time
from cclm.data.workers import WorkerPool

def make(step):
    while step >= 2:  # busy in the middle of a batch
        pass
    return step

pool = WorkerPool(make, range(9), num_workers=2, timeout_s=60.0, memory_bytes=1 << 20)
values = iter(pool)
next(values), next(values)
print(*(worker.pid for worker in pool._workers), flush=True)
time.sleep(600)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_workers_die_with_their_rank_in_the_middle_of_a_batch(number: signal.Signals) -> None:
    process = subprocess.Popen([sys.executable, "-c", ORPHANS], cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout is not None
    workers = [int(pid) for pid in process.stdout.readline().split()]
    assert len(workers) == 2 and not any(map(is_gone, workers))
    process.send_signal(number)
    assert process.wait(60) == -number
    deadline = time.monotonic() + 60
    while not all(map(is_gone, workers)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert all(map(is_gone, workers))
