from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cclm.run.ending import children_of
from cclm.run.machine import available_memory_bytes, process_memory_bytes

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    folder = tmp_path / "proc"
    (folder / "self").mkdir(parents=True)
    (folder / "meminfo").write_text("MemTotal: 100 kB\nMemAvailable:      64 kB\n")
    (folder / "self/cgroup").write_text("0::/job/step\n")
    return folder


def group(folder: Path, limit: str, used: int, cached: int, *, is_old: bool = False) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ("memory.limit_in_bytes" if is_old else "memory.max")).write_text(f"{limit}\n")
    (folder / ("memory.usage_in_bytes" if is_old else "memory.current")).write_text(f"{used}\n")
    prefix = "total_" if is_old else ""
    (folder / "memory.stat").write_text(f"anon 5\n{prefix}inactive_file {cached}\n{prefix}active_file 500\n")


def test_the_machine_or_the_smallest_group_decides(proc: Path, tmp_path: Path) -> None:
    groups = tmp_path / "cgroup"
    assert available_memory_bytes(proc, groups) == 64 * 1024
    group(groups / "job/step", "max", 10, 0)
    assert available_memory_bytes(proc, groups) == 64 * 1024
    group(groups / "job", "20000", 12000, 2000)
    assert available_memory_bytes(proc, groups) == 10500
    group(groups / "job", "10000", 12000, 0)
    assert available_memory_bytes(proc, groups) == 0


def test_groups_of_the_first_version(proc: Path, tmp_path: Path) -> None:
    (proc / "self/cgroup").write_text("5:cpuset:/\n4:memory:/slurm/job_7\n0::/\n")
    group(tmp_path / "cgroup/memory/slurm/job_7", "9223372036854771712", 1000, 0, is_old=True)
    assert available_memory_bytes(proc, tmp_path / "cgroup") == 64 * 1024
    group(tmp_path / "cgroup/memory/slurm", "30000", 21000, 0, is_old=True)
    assert available_memory_bytes(proc, tmp_path / "cgroup") == 9500


def test_this_machine_has_some() -> None:
    assert 0 < available_memory_bytes() < 1 << 50


def test_where_nobody_says_it_is_not_the_limit(tmp_path: Path) -> None:
    assert available_memory_bytes(tmp_path, tmp_path) > 1 << 60


GUARDED = """
import os, sys, threading, time
from pathlib import Path
from cclm.run.ending import MemoryGuard

left, falls = 10 << 30, sys.argv[2] == "before"

def look():
    global left
    left -= (1 << 30) if falls else 0
    return left

guard = MemoryGuard(Path(sys.argv[1]), 0, "Use less.", look=look)
with guard.watching():
    time.sleep(600 if falls else 0.1)
    guard.passed()
    falls = True
    [thread.join() for thread in threading.enumerate() if thread.name == "memory"]
"""


@pytest.mark.slow
@pytest.mark.parametrize(("when", "code"), [("before", 2), ("after", 0)])
def test_memory_that_runs_out_before_the_first_step_is_done_is_a_sentence(when: str, code: int, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", GUARDED, str(tmp_path), when], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == code, done.stderr
    if code:
        assert "expected enough memory, got 0." in done.stderr and "Use less." in done.stderr
        assert json.loads((tmp_path / "status/rank_0.json").read_text())["cause"] == "user_error"


def test_what_a_process_holds_and_started() -> None:
    assert process_memory_bytes(os.getpid())[0] > 1 << 20
    assert process_memory_bytes(1 << 30) == (0, 0)
    child = subprocess.Popen(["sleep", "60"])
    try:
        assert child.pid in children_of(os.getpid())
    finally:
        child.kill()
        child.wait()
