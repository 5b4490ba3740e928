"""Real ranks under the launcher: they meet, they agree, and the death of one does not leave the other waiting."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MEET = """
import os, sys
import torch
import torch.distributed as dist
dist.init_process_group("gloo")
total = torch.tensor([float(dist.get_rank() + 1)])
dist.all_reduce(total)
"""
FINISH = """
print(f"total {total.item():g} threads {torch.get_num_threads()}", flush=True)
dist.destroy_process_group()
"""
DIE_IN_A_COLLECTIVE = """
if dist.get_rank() == 1:
    os.kill(os.getpid(), 9)
dist.all_reduce(total)
"""


def launch(tmp_path: Path, code: str, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "program.py").write_text(code)
    command = [sys.executable, "-m", "launch", "run", "--ranks", "2", "--threads-per-rank", "1", *options]
    command += ["--run-folder", str(tmp_path / "run"), "--", "python", str(tmp_path / "program.py")]
    return subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.slow
def test_two_ranks_meet_over_gloo(tmp_path: Path) -> None:
    result = launch(tmp_path, MEET + FINISH)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "total 3 threads 1"
    assert (tmp_path / "run/logs/rank_1.log").read_text().splitlines()[-1] == "total 3 threads 1"


@pytest.mark.slow
def test_a_rank_that_dies_in_a_collective_ends_the_job(tmp_path: Path) -> None:
    result = launch(tmp_path, MEET + DIE_IN_A_COLLECTIVE)
    assert result.returncode == 128 + signal.SIGKILL
    assert ": killed by signal 9." in result.stderr


@pytest.mark.slow
def test_two_ranks_meet_by_a_network_profile(tmp_path: Path) -> None:
    told = 'print(*(f"{n}={os.environ.get(n)}" for n in ("GLOO_SOCKET_IFNAME", "NCCL_IB_DISABLE")), flush=True)\n'
    options = ("--network", "ethernet")
    result = launch(tmp_path, MEET + told + FINISH, *options, GLOO_SOCKET_IFNAME="lo")
    assert result.returncode == 0, result.stderr
    lines = (tmp_path / "run/logs/rank_1.log").read_text().splitlines()
    assert lines[-2:] == ["GLOO_SOCKET_IFNAME=lo NCCL_IB_DISABLE=1", "total 3 threads 1"]
