"""Following a file that grows, is cut off, is replaced, or is not there yet."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cclm.errors import ConfigError
from cclm.files.lines import Tail
from launch.slurm.jobs import JobNow, JobsNow
from launch.watch import logs
from launch.watch.logs import EndOfRun, follow, log_of
from launch.watch.run_folder import read_folder
from launch.watch.status import RunNow, run_now
from tests.unit.launch.slurm.fake_slurm import FakeSlurm
from tests.unit.launch.slurm.run_folders import begun, make_run, rank_says


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


def test_the_end_of_an_array_task(tmp_path: Path, fake_slurm: FakeSlurm) -> None:
    run = make_run(tmp_path, array=2, is_training=False)
    fake_slurm.queue(("7_0", "COMPLETED", "n1"), ("7_1", "RUNNING", "n1"))
    assert [EndOfRun(run, task)() for task in (0, 1, None)] == [True, False, False]


def find(run: Path, *, rank: int | None = None, task: int | None = None, say: Callable[[str], None] = print) -> Path:
    return log_of(looked_at(run), rank=rank, task=task, say=say)


def looked_at(run: Path) -> RunNow:
    return run_now(read_folder(run), JobsNow(jobs=(JobNow(job="7", state="RUNNING"),)))


@pytest.mark.parametrize(("rank", "name"), [(None, "slurm.log"), (0, "rank_0.log"), (3, "rank_3.log")])
def test_logs_of_a_job(tmp_path: Path, rank: int | None, name: str) -> None:
    assert find(make_run(tmp_path), rank=rank).name == name


def test_logs_of_an_array(tmp_path: Path) -> None:
    run = make_run(tmp_path, array=3, is_training=False)
    (run / "logs").mkdir()
    (run / "logs/slurm_1.log").touch()
    assert find(run, task=0).name == "task_0.log"
    assert find(run, task=1).name == "slurm_1.log", "it ended before its task began"
    (run / "logs/task_1.log").touch()
    assert find(run, task=1).name == "task_1.log"
    with pytest.raises(ConfigError, match="got --task 3 of an array with tasks 0-2"):
        find(run, task=3)
    with pytest.raises(ConfigError, match="expected --task N, for an array has a log for each task, got none"):
        find(run)


def test_logs_of_a_local_run(tmp_path: Path) -> None:
    """Rank 0 writes to the terminal, so the others' are what there is."""
    rank_says(tmp_path, 0, step=1, time=1.0)
    with pytest.raises(
        ConfigError, match=r"expected rank_0.log, got no rank's log. Without Slurm, rank 0 writes to the"
    ):
        find(tmp_path)
    (tmp_path / "logs").mkdir()
    for rank in (1, 10, 2):
        (tmp_path / f"logs/rank_{rank}.log").touch()
    assert find(tmp_path, rank=2).name == "rank_2.log"
    said: list[str] = []
    assert find(tmp_path, say=said.append).name == "rank_1.log"
    assert said == ["rank 0 writes to the terminal of `launch run`; this is rank 1's"]
    with pytest.raises(ConfigError, match=r"expected rank_3.log, got logs of rank\(s\) 1-2,10\. Check the number"):
        find(tmp_path, rank=3)
