"""What a rank gets from Slurm: its place, its GPUs, and the same from torchrun."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.slurm.jobs import PATIENCE_S, ROOT, ended, launch, said

SMALL = ("--time", "5", "--save-s", "60")
TELL = """
import os, socket
names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "CUDA_VISIBLE_DEVICES")
words = [socket.gethostname(), *(str(os.environ.get(name)) for name in names)]
os.write(1, (" ".join(words) + chr(10)).encode())  # in one piece: under torchrun the ranks of a node share a file
"""


def test_ranks_see_all_gpus_of_their_node(tmp_path: Path) -> None:
    """Each takes number LOCAL_RANK of them. The GPUs are false, so preflight finds no nvidia-smi and lets them pass."""
    run = tmp_path / "run"
    (tmp_path / "tell.py").write_text(TELL)
    options = ["--nodes", "2", "--gpus-per-node", "2", "--cpus-per-task", "2", "--preflight", "quick", *SMALL]
    told = launch("submit", "--run-folder", str(run), *options, "--", "python", str(tmp_path / "tell.py"))
    assert told.returncode == 0, told.stderr
    assert ended(told.stdout.strip(), run) == "COMPLETED", said(run)
    lines = [(run / f"logs/rank_{rank}.log").read_text().splitlines()[-1] for rank in range(4)]
    assert lines == ["n1 0 0 4 2 0,1", "n1 1 1 4 2 0,1", "n2 2 0 4 2 0,1", "n2 3 1 4 2 0,1"]
    assert "preflight: 2 node(s) healthy" in said(run)


def test_torchrun_gives_the_same_places(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (tmp_path / "tell.py").write_text(TELL)
    options = ["--nodes", "2", "--tasks-per-node", "2", "--launcher", "torchrun", "--preflight", "none", *SMALL]
    told = launch("submit", "--run-folder", str(run), *options, "--", "python", str(tmp_path / "tell.py"))
    assert told.returncode == 0, told.stderr
    assert ended(told.stdout.strip(), run) == "COMPLETED", said(run)
    lines = [line for node in range(2) for line in (run / f"logs/rank_{node}.log").read_text().splitlines()]
    ranks = sorted(line for line in lines if line.startswith("n"))
    assert ranks == ["n1 0 0 4 2 None", "n1 1 1 4 2 None", "n2 2 0 4 2 None", "n2 3 1 4 2 None"]


PLACE = """
import os
from cclm.errors import ConfigError
from cclm.run.launcher import adopt_place
try:
    place = adopt_place(os.environ)
except ConfigError as error:
    told = f"refused: {error.got}"
else:
    told = f"{place.rank} of {place.world_size}, {place.local_rank} of {place.local_world_size}"
    if place.world_size > 1:
        from cclm.distributed.topology import meet
        store = meet(place.rank, place.world_size, 600.0)
        store.set(f"met {place.rank}", "")
        if place.rank == 0:  # its store is everybody's
            store.wait([f"met {rank}" for rank in range(place.world_size)])
os.write(1, (told + chr(10)).encode())
"""
PLAIN_JOB = """#!/bin/bash
cd {root}
echo alone; {python} {script}
echo refused; srun -n 3 {python} {script}
export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1) MASTER_PORT=29512
echo found; srun -n 3 {python} {script}
echo alone; {python} {script}
"""


def test_srun_without_our_launcher_is_refused_with_the_line_that_works(tmp_path: Path) -> None:
    """What a refused process is told to do: the job's script does it then."""
    script, job, output = tmp_path / "place.py", tmp_path / "job.sh", tmp_path / "job.log"
    remarks = tmp_path / "remarks.log"  # srun's, for one: the step before has not left its nodes yet
    script.write_text(PLACE)
    job.write_text(PLAIN_JOB.format(root=ROOT, python=sys.executable, script=script))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    told = subprocess.run(
        ["sbatch", "--wait", "-N", "2", "-n", "3", "-o", str(output), "-e", str(remarks), str(job)],
        env=environment, capture_output=True, text=True, timeout=2 * PATIENCE_S, check=False,
    )  # fmt: skip
    assert told.returncode == 0, remarks.read_text()
    parts = re.split(r"(?m)^(?=alone$|refused$|found$)", output.read_text())[1:]
    groups = [set(part.splitlines()[1:]) for part in parts]
    assert groups[0] == groups[3] == {"0 of 1, 0 of 1"}
    assert groups[1] == {
        f"refused: process {rank} of 3 that srun started, without MASTER_ADDR, MASTER_PORT" for rank in range(3)
    }
    assert groups[2] == {"0 of 3, 0 of 2", "1 of 3, 1 of 2", "2 of 3, 0 of 1"}


def test_launch_run_refuses_to_be_one_of_several(tmp_path: Path) -> None:
    """Each of srun's tasks would start the whole job."""
    options = ("--run-folder", str(tmp_path / "run"), "--ranks", "1", "--", "true")
    command = [sys.executable, "-m", "launch", "run", *options]
    told = subprocess.run(
        ["srun", "-n2", "--time", "5", *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert told.returncode == 2
    assert told.stderr.count("of 2 that srun started") == 2, told.stderr
    assert not (tmp_path / "run").exists()
