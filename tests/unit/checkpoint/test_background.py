"""Checkpoints that are written while training goes on, on one process; on ranks: tests/ranks/test_checkpoint.py."""

from __future__ import annotations

import errno
import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch

from cclm.checkpoint import background
from cclm.checkpoint.background import BackgroundSaver, HostBuffer
from cclm.checkpoint.collective import save_checkpoint
from cclm.engine.fragments import ShareFile, share_path
from cclm.engine.plain import PlainEngine
from cclm.engine.protocol import Engine
from cclm.errors import Cause, CheckpointError
from cclm.run.checkpoints import (
    Pins,
    complete_checkpoints,
    newest_complete,
    partial_folder,
    pin,
    read_marker,
    step_folder,
)
from tests.ranks.harness import Case, drive, make_plain
from tests.ranks.toy import make_toy_with_dropout, mixed_batch
from tests.unit.run.test_background import wait_until_gone

CASE = Case(make_module=make_toy_with_dropout, make_batch=mixed_batch, num_steps=4)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def engine() -> PlainEngine[Any]:
    found = make_plain(CASE)
    drive(found, CASE, range(1))
    return found


@pytest.fixture
def saver(engine: PlainEngine[Any], tmp_path: Path) -> Iterator[BackgroundSaver]:
    with closing(BackgroundSaver(engine, tmp_path, keep=2)) as found:
        yield found


def note(engine: Engine[Any], folder: Path) -> None:
    """In the place of reference outputs."""
    (folder / "outputs").write_text(str(engine.rank))


def steps_of(run: Path) -> list[int]:
    return [read_marker(path).step for path in complete_checkpoints(run)]


def test_it_is_the_checkpoint_that_would_be_written_in_the_step(engine: PlainEngine[Any], tmp_path: Path) -> None:
    at_once = save_checkpoint(engine, tmp_path / "at once", 1, {"seen": [1]}, keep=1, reference_outputs=note)
    completed = list[float]()
    with closing(BackgroundSaver(engine, tmp_path / "behind", keep=1, reference_outputs=note)) as saver:
        saver.begin(1, {"seen": [1]}, completed.append)
        assert newest_complete(tmp_path / "behind") is None and not completed
        expected = drive(engine, CASE, range(1, 4))
        saver.wait()
        assert not saver.is_pending and not saver.is_writing and len(completed) == 1
    behind = step_folder(tmp_path / "behind", 1)
    assert share_path(behind, 0).read_bytes() == share_path(at_once, 0).read_bytes()
    assert read_marker(behind) == read_marker(at_once)
    resumed = make_plain(CASE)
    assert resumed.load(behind) == {"step": 1, "state": {"seen": [1]}}
    actual = drive(resumed, CASE, range(1, 4))
    assert actual.losses == expected.losses
    assert all(torch.equal(actual.parameters[name], value) for name, value in expected.parameters.items())


def test_the_buffer_is_used_again_for_what_is_newer(
    engine: PlainEngine[Any], saver: BackgroundSaver, tmp_path: Path
) -> None:
    saver.begin(1, {})
    memory = saver._buffer.bytes.data_ptr()
    for step in (2, 3):
        drive(engine, CASE, range(step - 1, step))
        saver.begin(step, {"longer": "state"})  # waits for the one before
    saver.wait()
    assert saver._buffer.bytes.data_ptr() == memory and steps_of(tmp_path) == [2, 3]
    at_once = save_checkpoint(engine, tmp_path / "at once", 3, {"longer": "state"}, keep=1)
    assert share_path(step_folder(tmp_path, 3), 0).read_bytes() == share_path(at_once, 0).read_bytes()


def test_a_checkpoint_that_is_there_is_not_written_again(saver: BackgroundSaver, tmp_path: Path) -> None:
    saver.begin(1, {})
    saver.wait()
    before = (step_folder(tmp_path, 1) / "complete").stat().st_mtime_ns
    saver.begin(1, {"other": 1})
    assert not saver.is_pending
    assert (step_folder(tmp_path, 1) / "complete").stat().st_mtime_ns == before


def test_it_is_completed_in_parts_that_wait_for_nothing(
    engine: PlainEngine[Any], saver: BackgroundSaver, tmp_path: Path
) -> None:
    saver.begin(1, {})
    drive(engine, CASE, range(1, 2))
    for _ in range(2):  # the shares, then the marker
        while saver.is_writing:
            pass
        assert saver.is_pending
        saver.go_on()
    assert not saver.is_pending and steps_of(tmp_path) == [1]


def test_a_writer_that_is_killed_costs_nothing(
    engine: PlainEngine[Any], saver: BackgroundSaver, tmp_path: Path
) -> None:
    saver.begin(1, {})
    engine.before_update()
    process = saver._writer._process
    assert process is not None
    process.kill()
    saver.wait()
    assert steps_of(tmp_path) == [1]
    saver.begin(2, {})
    saver.wait()
    assert steps_of(tmp_path) == [1, 2]


def test_without_memory_for_a_copy_it_is_written_in_the_step(
    saver: BackgroundSaver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(background, "available_memory_bytes", lambda: 1000)
    for step in (1, 2):
        saver.begin(step, {})
        assert not saver.is_pending and saver._buffer.bytes.numel() == 0
    assert steps_of(tmp_path) == [1, 2]
    assert capfd.readouterr().err.count("written while training waits") == 1


class WriterInThisProcess:
    """Makes the calls at once; the first `failures` of them fail as on a full disk."""

    def __init__(self, failures: int) -> None:
        self.failures, self.calls = failures, 0

    def submit(self, call: Callable[[], Any]) -> None:
        self.calls += 1
        self.call: Callable[[], Any] = call
        if self.calls <= self.failures:
            self.call = lambda: os.write(os.open("/dev/full", os.O_WRONLY), b"x")

    def result(self) -> Any:
        return self.call()

    def close(self) -> None:
        pass


@pytest.mark.parametrize(("keep", "failures", "left"), [(2, 1, [2, 3]), (2, 2, [2]), (1, 1, [2])])
def test_on_a_full_disk_what_will_be_replaced_goes_first(
    engine: PlainEngine[Any], tmp_path: Path, keep: int, failures: int, left: list[int]
) -> None:
    for step in (1, 2):
        save_checkpoint(engine, tmp_path, step, {}, keep=keep)
    with closing(BackgroundSaver(engine, tmp_path, keep=keep)) as saver:
        saver._writer = WriterInThisProcess(failures)  # type: ignore[assignment]
        saver.begin(3, {})
        if left[-1] == 3:
            saver.wait()
        else:
            with pytest.raises(CheckpointError) as caught:
                saver.wait()
            assert caught.value.cause is Cause.DISK_FULL
            assert not saver.is_pending
    assert steps_of(tmp_path) == left


def test_on_a_full_disk_the_best_stays_until_a_better_one_is_complete(engine: PlainEngine[Any], tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save_checkpoint(engine, tmp_path, step, {}, keep=9)
    with closing(BackgroundSaver(engine, tmp_path, keep=2)) as saver:
        for failures in (2, 1):
            pin(tmp_path, Pins(steps=[4, 1], proven=3))
            saver._writer = WriterInThisProcess(failures)  # type: ignore[assignment]
            saver.begin(4, {})
            if failures == 2:
                with pytest.raises(CheckpointError):
                    saver.wait()
                assert steps_of(tmp_path) == [1, 3]
                save_checkpoint(engine, tmp_path, 2, {}, keep=9)
        saver.wait()
    assert steps_of(tmp_path) == [1, 3, 4]


def test_what_the_disk_refuses_for_good_is_one_error_and_the_older_one_stays(
    saver: BackgroundSaver, tmp_path: Path
) -> None:
    saver.begin(1, {})
    saver.wait()
    limit_files(saver, 2000)
    saver.begin(2, {})
    sentence = r"expected every rank to write its share of .*step_\S+partial, got rank 0: OSError: .*File too large"
    with pytest.raises(CheckpointError, match=sentence) as caught:
        saver.wait()
    assert caught.value.cause is Cause.DISK_FULL and steps_of(tmp_path) == [1]
    limit_files(saver, resource.RLIM_INFINITY)
    saver.begin(2, {})
    saver.wait()
    assert steps_of(tmp_path) == [1, 2]


def limit_files(saver: BackgroundSaver, size_bytes: int) -> None:
    """Have the kernel refuse the writer every longer file, as a full disk does."""
    process = saver._writer._process
    assert process is not None
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size_bytes, resource.RLIM_INFINITY))


def _begin_and_die(run: Path, told: Connection) -> None:
    torch.set_num_threads(1)
    saver = BackgroundSaver(make_plain(CASE), run, keep=1)
    saver._writer.submit(os.getpid)
    told.send(saver._writer.result())
    saver.begin(20, {})
    saver._finish_copy()
    os.kill(os.getpid(), signal.SIGKILL)


def test_killed_while_it_is_written_the_older_one_stays_and_no_process(
    engine: PlainEngine[Any], saver: BackgroundSaver, tmp_path: Path
) -> None:
    save_checkpoint(engine, tmp_path, 10, {}, keep=1)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch"])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_begin_and_die, args=(tmp_path, sender))
    process.start()
    sender.close()
    pid = receiver.recv()
    process.join(600)
    assert process.exitcode == -signal.SIGKILL
    wait_until_gone(pid)
    assert steps_of(tmp_path) == [10] and partial_folder(tmp_path, 20).exists()
    saver.begin(30, {})
    assert not partial_folder(tmp_path, 20).exists()
    saver.wait()
    assert steps_of(tmp_path) == [10, 30]


def test_an_update_waits_for_the_copy(
    engine: PlainEngine[Any], saver: BackgroundSaver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once = save_checkpoint(engine, tmp_path / "at once", 1, {}, keep=1)
    copy_into, seen = ShareFile.copy_into, list[str]()

    def slowly(share: ShareFile, buffer: torch.Tensor) -> None:
        time.sleep(0.3)
        copy_into(share, buffer)
        seen.append("copied")

    monkeypatch.setattr(ShareFile, "copy_into", slowly)
    update = engine._update

    def noted(max_norm: float) -> Any:
        seen.append("update")
        return update(max_norm)

    monkeypatch.setattr(engine, "_update", noted)
    saver.begin(1, {}, lambda waited_s: seen.append(f"waited {waited_s > 0}"))
    drive(engine, CASE, range(1, 3))
    saver.wait()
    assert seen == ["copied", "update", "update", "waited True"]
    assert share_path(step_folder(tmp_path, 1), 0).read_bytes() == share_path(at_once, 0).read_bytes()


@pytest.mark.parametrize("where", ["reserve", "copy_into"])
def test_a_copy_that_fails_is_an_error_of_the_save(
    engine: PlainEngine[Any], saver: BackgroundSaver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    save_checkpoint(engine, tmp_path, 1, {}, keep=2)

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(HostBuffer if where == "reserve" else ShareFile, where, refuse)
    with pytest.raises(CheckpointError, match="Cannot allocate memory"):
        saver.begin(2, {})
        drive(engine, CASE, range(1, 2))
        assert not saver.is_writing
        saver.go_on()
    assert not saver.is_pending and steps_of(tmp_path) == [1]
