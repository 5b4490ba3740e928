"""`logs` as a command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from launch.__main__ import main
from launch.watch import logs
from tests.unit.launch.slurm.fake_slurm import FakeSlurm
from tests.unit.launch.slurm.run_folders import make_run

ROOT = Path(__file__).resolve().parents[4]


@pytest.fixture
def run(tmp_path: Path, fake_slurm: FakeSlurm) -> Path:
    run = make_run(tmp_path)
    (run / "logs").mkdir()
    (run / "logs/slurm.log").write_text("one\ntwo\nthree\n")
    fake_slurm.queue(("7", "COMPLETED", "n1"))
    return run


def test_the_last_lines(run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["logs", str(run), "--lines", "2"]) == 0
    assert capsys.readouterr().out == "two\nthree\n"
    monkeypatch.setattr(logs, "LATE_S", 0.0)
    assert main(["logs", str(run), "--follow", "--lines", "1"]) == 0
    assert capsys.readouterr().out == "three\n"


def test_a_log_that_is_not_there_yet(run: Path, fake_slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["logs", str(run), "--rank", "3"]) == 2, "and will never be"
    assert "logs: expected rank_3.log, got no rank's log. Check the number." in capsys.readouterr().err
    assert main(["logs", str(run), "--task", "0", "--follow"]) == 2
    assert "got --task 0 of no array. Ranks have --rank R." in capsys.readouterr().err
    fake_slurm.queue(("7", "RUNNING", "n1"))
    assert main(["logs", str(run), "--rank", "3"]) == 1
    assert "logs/rank_3.log is not there yet" in capsys.readouterr().err


def test_a_reader_that_has_seen_enough(run: Path) -> None:
    (run / "logs/slurm.log").write_text("line\n" * 100_000)
    command = f"'{sys.executable}' -m launch logs {run} --lines 90000 | (read line; echo $line)"
    done = subprocess.run(["/bin/bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("line\n", "")


def test_a_user_who_has_had_enough(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("launch.watch.logs.time.sleep", interrupt)
    assert main(["logs", str(run), "--follow"]) == 130
