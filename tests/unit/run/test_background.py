"""The process that writes checkpoints: its calls, its deaths, its end with its rank."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from cclm.errors import Cause, CclmError
from cclm.run import background, causes
from cclm.run.background import STARTS, Writer, write_files
from cclm.run.checkpoints import FileRecord, record_file
from cclm.run.signals import STOP_SIGNALS


@pytest.fixture
def writer() -> Iterator[Writer]:
    found = Writer([])
    yield found
    found.close()


@pytest.fixture
def memory() -> Iterator[int]:
    descriptor = os.memfd_create("test")
    os.write(descriptor, bytes(range(256)) * 10)
    yield descriptor
    os.close(descriptor)


def number_of(writer: Writer) -> int:
    writer.submit(os.getpid)
    found = writer.result()
    assert isinstance(found, int) and found != os.getpid()
    return found


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 30
    while is_alive(pid):
        assert time.monotonic() < deadline, f"process {pid} lives on"
        time.sleep(0.01)


def test_one_process_makes_the_calls_and_what_they_raise_is_raised_here(writer: Writer, tmp_path: Path) -> None:
    first = number_of(writer)
    writer.submit(partial(os.listdir, "/no such folder"))
    with pytest.raises(FileNotFoundError) as caught:
        writer.result()
    assert (caught.value.errno, caught.value.filename) == (errno.ENOENT, "/no such folder")
    assert number_of(writer) == first
    os.mkfifo(fifo := tmp_path / "fifo")
    writer.submit(partial(Path.read_text, fifo))
    assert not writer.is_ready()
    threading.Thread(target=fifo.write_text, args=("now",), daemon=True).start()  # waits for the reader
    assert writer.result() == "now" and writer.is_ready()


def test_it_hears_no_request_to_stop(writer: Writer) -> None:
    first = number_of(writer)
    for request in STOP_SIGNALS:
        os.kill(first, request)
    assert number_of(writer) == first


def test_if_it_dies_another_begins_the_call_anew(writer: Writer, tmp_path: Path) -> None:
    first = number_of(writer)
    os.kill(first, signal.SIGKILL)
    wait_until_gone(first)
    assert number_of(writer) != first, "it was dead before the call"
    made = tmp_path / "made"
    writer.submit(partial(eval, f"__import__('os').mkdir({str(made)!r}) or __import__('signal').raise_signal(9)"))
    with pytest.raises(FileExistsError):
        writer.result()


@pytest.mark.slow
def test_if_it_dies_again_and_again_the_call_fails(writer: Writer) -> None:
    number_of(writer)
    writer.submit(partial(signal.raise_signal, signal.SIGKILL))
    with pytest.raises(CclmError) as caught:
        writer.result()
    assert caught.value.cause is Cause.TRANSIENT
    assert caught.value.got == f"{STARTS} that ended with exit code -9"


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_it_ends_with_its_rank_in_the_middle_of_a_call(end: signal.Signals) -> None:
    text = (
        "import time; from functools import partial; from cclm.run.background import Writer\n"
        "call = 'import os, time; print(os.getpid(), flush=True); time.sleep(600)'\n"
        "writer = Writer([]); writer.submit(partial(exec, call)); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, text=True) as rank:
        assert rank.stdout is not None
        pid = int(rank.stdout.readline())
        assert is_alive(pid)
        rank.send_signal(end)
    wait_until_gone(pid)


def test_what_lies_in_memory_is_written_with_its_hash(tmp_path: Path, memory: int) -> None:
    (tmp_path / "beside").write_text("small")
    found = write_files(memory, 2000, tmp_path, "state/share", ["beside"])
    content = (tmp_path / "state" / "share").read_bytes()
    assert content == (bytes(range(256)) * 10)[:2000]
    assert found["state/share"] == FileRecord(size_bytes=2000, sha256=hashlib.sha256(content).hexdigest())
    assert found == {name: record_file(tmp_path / name) for name in ("state/share", "beside")}


@pytest.mark.parametrize(("number", "tries"), [(errno.EIO, 2), (errno.ENOSPC, 1)])
def test_a_fault_that_passes_is_met_by_writing_again(
    tmp_path: Path, memory: int, monkeypatch: pytest.MonkeyPatch, number: int, tries: int
) -> None:
    calls = list[int]()

    def fail_once(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 1:
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(background.os, "fsync", fail_once)
    monkeypatch.setattr(causes, "WAITS_S", (0.0, 0.0))
    if tries == 1:
        with pytest.raises(OSError, match="No space"):
            write_files(memory, 2560, tmp_path, "share")
    else:
        assert write_files(memory, 2560, tmp_path, "share")["share"].size_bytes == 2560
    assert len(calls) == tries
