"""Following a file that grows, is cut off, is replaced, or is not there yet."""

from __future__ import annotations

from pathlib import Path

import pytest

from cclm.errors import ConfigError
from launch.slurm.queue import JobNow, JobsNow
from launch.watch import logs
from launch.watch.logs import EndOfRun, Tail, follow, last_lines, log_of
from launch.watch.run_folder import read_folder
from launch.watch.status import RunNow, run_now
from tests.unit.launch.slurm.fake_slurm import FakeSlurm
from tests.unit.launch.slurm.run_folders import begun, make_run, rank_says


@pytest.mark.parametrize(("count", "text"), [(0, ""), (1, "c"), (2, "b\nc"), (9, "a\nb\nc")])
def test_last_lines(tmp_path: Path, count: int, text: str) -> None:
    path = tmp_path / "log"
    path.write_text("a\nb\nc")
    assert last_lines(path, count) == (text.encode(), 5)


def test_last_lines_of_a_long_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "BLOCK_BYTES", 7)
    path = tmp_path / "log"
    path.write_text("".join(f"line {number}\n" for number in range(100)))
    assert last_lines(path, 3)[0] == b"line 97\nline 98\nline 99\n"
    assert last_lines(path, 1000)[0] == path.read_bytes()


def test_each_byte_is_told_once(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("a\nb\n")
    tail = Tail(path, 1)
    with path.open("a") as file:
        file.write("c")
    assert (tail.news(), tail.news()) == (b"b\nc", b"")
    path.write_text("x\n")
    assert tail.news() == b"x\n", "cut off and begun anew"
    path.rename(tmp_path / "log.1")
    assert tail.news() is None
    path.write_text("a longer text than before\n")
    assert tail.news() == b"a longer text than before\n", "another file of the same name"


def test_it_follows_to_the_end_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file comes late, grows, and its last words reach us after the news of the end."""
    monkeypatch.setattr(logs, "POLL_S", 0.001)
    monkeypatch.setattr(logs, "LATE_S", 0.05)
    path = tmp_path / "log"
    questions: list[str] = []

    def is_over() -> bool:
        questions.append("?")
        if len(questions) == 3:
            path.write_text("begin\n")
        if len(questions) == 6:
            with path.open("a") as file:
                file.write("the last words\n")
            return True
        return len(questions) > 6

    said: list[str] = []
    told = follow(Tail(path, 10), is_over=is_over, say=said.append)
    assert b"".join(told) == b"begin\nthe last words\n"
    assert said == [f"{path} is not there yet"]


def test_slurm_is_not_asked_at_every_look(tmp_path: Path, fake_slurm: FakeSlurm) -> None:
    run = make_run(tmp_path)
    fake_slurm.queue(("7", "RUNNING", "n1"))
    is_over = EndOfRun(run, None)
    assert [is_over() for _ in range(5)] == [False] * 5
    assert len(fake_slurm.calls("squeue")) == 1
    fake_slurm.queue(("7", "FAILED", "n1"))
    assert not is_over()
    begun(run, 0)
    assert is_over(), "its history has changed, so it is worth a question"


def test_the_end_of_an_element(tmp_path: Path, fake_slurm: FakeSlurm) -> None:
    run = make_run(tmp_path, array=2, is_training=False)
    fake_slurm.queue(("7_0", "COMPLETED", "n1"), ("7_1", "RUNNING", "n1"))
    assert [EndOfRun(run, task)() for task in (0, 1, None)] == [True, False, False]


def looked_at(run: Path) -> RunNow:
    return run_now(read_folder(run), JobsNow(jobs=(JobNow(job="7", state="RUNNING"),)))


@pytest.mark.parametrize(("rank", "name"), [(None, "slurm.log"), (0, "rank_0.log"), (3, "rank_3.log")])
def test_logs_of_a_job(tmp_path: Path, rank: int | None, name: str) -> None:
    assert log_of(looked_at(make_run(tmp_path)), rank=rank, task=None).name == name


def test_logs_of_an_array(tmp_path: Path) -> None:
    run = make_run(tmp_path, array=3, is_training=False)
    (run / "logs").mkdir()
    (run / "logs/slurm_1.log").touch()
    assert log_of(looked_at(run), rank=None, task=0).name == "task_0.log"
    assert log_of(looked_at(run), rank=None, task=1).name == "slurm_1.log", "it ended before its task began"
    (run / "logs/task_1.log").touch()
    assert log_of(looked_at(run), rank=None, task=1).name == "task_1.log"
    with pytest.raises(ConfigError, match="got --task 3 of an array with elements 0-2"):
        log_of(looked_at(run), rank=None, task=3)
    with pytest.raises(ConfigError, match="expected --task N, for an array has a log for each element, got none"):
        log_of(looked_at(run), rank=None, task=None)


def test_logs_of_a_local_run(tmp_path: Path) -> None:
    rank_says(tmp_path, 0, step=1, time=1.0)
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/rank_1.log").touch()
    assert log_of(looked_at(tmp_path), rank=1, task=None).name == "rank_1.log"
    with pytest.raises(
        ConfigError, match=r"expected rank_0.log, got rank_1.log. Without Slurm, rank 0 writes to the term"
    ):
        log_of(looked_at(tmp_path), rank=None, task=None)
