"""`launch ssh` through a real ssh to real sshds: nodes n1 and n2 of the cluster, and no scheduler."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import sh
from tests.slurm.jobs import ENVIRONMENT, ROOT, STEPS_ALONE, launch, losses, read_done, tiny, wait
from tests.slurm.sshd import Sshd, find_sshd

SLEEP = """
import os, pathlib, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"])
path = pathlib.Path(sys.argv[1]) / f"ready_{os.environ['RANK']}"
path.with_suffix(".new").write_text(f"{os.getpid()} {child.pid}")
path.with_suffix(".new").replace(path)
time.sleep(60)
"""


@pytest.fixture(scope="module")
def sshd(cluster: Path) -> Iterator[Sshd]:
    if find_sshd() is None:
        pytest.skip("no sshd, and the package could not be fetched")
    servers = Sshd(cluster / "sshd", ("n1", "n2"))
    yield servers
    servers.stop()


def test_two_hosts_train_like_one_process(sshd: Sshd, corpus: Path, alone: Path, tmp_path: Path) -> None:
    run, hosts = tmp_path / "run", tmp_path / "hosts.txt"
    hosts.write_text("# no scheduler\nn1 slots=1\nn2 slots=1\n")
    quiet = [f"--env={name}" for name in ("PYTHONWARNINGS", "TORCH_CPP_LOG_LEVEL", "TOKENIZERS_PARALLELISM")]
    words = ["--hostfile", str(hosts), "--run-folder", str(run), *sshd.options(), *quiet]
    words += ["--threads-per-rank", "1"]  # both hosts are one machine
    recipe = tiny(corpus, run, STEPS_ALONE)
    told = launch("ssh", *words, "--", "python", "-m", "pretrain", "--recipe", str(recipe))
    assert told.returncode == 0, told.stderr
    assert read_done(run) == STEPS_ALONE
    statuses = [json.loads(path.read_text()) for path in sorted((run / "status").glob("rank_*.json"))]
    assert [status["host"] for status in statuses] == ["n1", "n2"]
    assert json.loads((run / "ds_config.json").read_text())["zero_optimization"]["stage"] == 3
    together, single = losses(run), losses(alone)
    assert list(together) == list(single) == list(range(STEPS_ALONE))
    for step, loss in single.items():
        assert together[step] == pytest.approx(loss, rel=1e-4), step
    assert (run / "ledger.jsonl").read_bytes() == (alone / "ledger.jsonl").read_bytes()
    # What rank 0 has written is what was seen here, but for the header of its life.
    assert (run / "logs/rank_0.log").read_text().partition("\n")[2] == told.stdout


def test_hosts_that_cannot_take_part_are_named_and_nothing_starts(sshd: Sshd, tmp_path: Path) -> None:
    """A wrong key, a host without a server, an address that nobody has."""
    began = time.monotonic()
    words = ["--run-folder", str(tmp_path / "run"), "--connect-timeout-s", "1", *sshd.options("wrong_key")]
    told = launch("ssh", "--hosts", "n1,n3,10.77.0.99", *words, "--", "true")
    assert time.monotonic() - began < 10
    assert told.returncode == 2
    assert "n1: ssh ended with code 255: root@n1: Permission denied (publickey); n3: ssh ended" in told.stderr
    assert "connect to host n3 port 2222: Connection refused; 10.77.0.99: ssh ended with code 255" in told.stderr
    assert not (tmp_path / "run").exists()


def test_a_cut_cable_leaves_no_process_on_either_side(sshd: Sshd, tmp_path: Path) -> None:
    """Both sides notice, by what they no longer hear: no packet tells them."""
    (tmp_path / "sleep.py").write_text(SLEEP)
    command = [sys.executable, "-m", "launch", "ssh", "--hosts", "n1,n2", "--run-folder", str(tmp_path / "run")]
    command += ["--grace-s", "0.5", "--lost-s", "3", "--ssh-option", "ServerAliveInterval=1", *sshd.options()]
    command += ["--", "python", "-S", str(tmp_path / "sleep.py"), str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    notes = [tmp_path / f"ready_{rank}" for rank in (0, 1)]
    wait(lambda: all(note.exists() for note in notes), "both ranks")
    everybody = [int(pid) for note in notes for pid in note.read_text().split()]
    assert [pid for pid in everybody if is_running(pid)] == everybody
    sh("ip link set v2 down")
    try:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 255, errors
        assert "rank 1 on n2: connection lost (ssh ended with code 255: Timeout, server n2 not responding" in errors
        wait(lambda: not any(is_running(pid) for pid in everybody), "the end of all ranks")
    finally:
        sh("ip link set v2 up")


def is_running(pid: int) -> bool:
    """All nodes share one table of processes."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
