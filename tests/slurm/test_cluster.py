"""Is the cluster what the other tests take it for?"""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.slurm.cluster import sh
from tests.slurm.jobs import PATIENCE_S, launch


def run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=True).stdout


def test_nodes_have_their_own_names_and_addresses(cluster: Path) -> None:
    told = run("srun", "-N2", "bash", "-c", "echo $(hostname) $(ip -4 -o addr show dev eth0 | awk '{print $4}')")
    assert sorted(told.splitlines()) == ["n1 10.77.0.1/24", "n2 10.77.0.2/24"]


def test_tasks_are_numbered_and_see_their_gpus() -> None:
    say = "echo $SLURM_PROCID $SLURM_LOCALID $SLURM_NODEID $CUDA_VISIBLE_DEVICES"
    told = run("srun", "-N2", "--ntasks-per-node=2", "--gpus-per-node=2", "bash", "-c", say)
    assert sorted(told.splitlines()) == ["0 0 0 0,1", "1 1 0 0,1", "2 0 1 0,1", "3 1 1 0,1"]


def test_each_node_has_a_disk_of_its_own(cluster: Path) -> None:
    run("srun", "-w", "n1", "touch", f"{cluster}/local/here")
    assert run("srun", "-w", "n1", "ls", f"{cluster}/local") == "here\n"
    assert run("srun", "-w", "n2", "ls", f"{cluster}/local") == ""
    run("srun", "-w", "n1", "rm", f"{cluster}/local/here")


def test_a_plain_user_may_use_it(cluster: Path) -> None:
    as_user = ("setpriv", "--reuid", "trainer", "--regid", "trainer", "--clear-groups")
    assert run(*as_user, "srun", "-D", f"{cluster}/home", "id", "-un") == "trainer\n"


def test_it_is_invisible_from_outside() -> None:
    assert sh("cat /proc/1/cmdline | tr '\\0' ' '").split()[1:3] == ["-m", "tests.slurm.cluster"]


def test_doctor_tells_what_it_offers_and_what_would_go_wrong(cluster: Path) -> None:
    told = launch("doctor", "--folder", f"{cluster}/home", "--profile", "pyxis", "--save-s", "4")
    lines = [line.split(maxsplit=1) for line in told.stdout.splitlines()]
    slurm = [
        (level, rest) for level, rest in lines if "partition" in rest or rest.startswith(("Slurm", "sacct", "run f"))
    ]
    assert [level for level, _ in slurm] == ["ok", "ok", "ok", "ok", "note", "warn", "warn"], told.stdout
    assert "22.05" in slurm[1][1]
    assert "partition train*" in slurm[2][1]
    assert "3 idle; each × 8 core(s), 4 GiB, gpu:2; time limit unlimited; preemption off" in slurm[2][1]
    assert "Slurm accounting storage is disabled" in slurm[4][1]
    assert "partition gpu does not exist here, only train, preempt: adapt it" in slurm[5][1]
    assert "is on tmpfs, a disk of this machine" in slurm[6][1]
