"""Jobs for the tests of Slurm scripts, and the golden files that hold them:

python -m tests.unit.launch.slurm.scripts        write the golden files anew; then read what `git diff` shows
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from launch.plan.request import Profile, SlurmRequest, read_profile
from launch.plan.slurm_job import SweepPlan, plan_job
from launch.slurm.submit import render, render_sweep

GOLDEN = Path(__file__).parent / "golden"
REQUEST = SlurmRequest(
    name="base",
    run_folder=Path("/shared/runs/base"),
    checkout=Path("/shared/cclm"),
    command=("python", "-m", "pretrain", "--recipe", "/shared/runs/base/recipe.yaml"),
    reads=("/shared/data/images", "/shared/data/pairs"),
    nodes=4,
    gpus_per_node=8,
    python="/shared/venv/bin/python",
)
CPU = replace(REQUEST, gpus_per_node=0, tasks_per_node=2, preflight="quick")
EVERYTHING = replace(
    REQUEST,
    account="project7",
    qos="long",
    constraint="h100&ib",
    exclude="node13",
    time="2-00:00:00",
    sbatch={"exclusive": "", "mail-user": "me@example.org", "comment": "a 'quoted' comment"},
    replace_bad_nodes=True,
)
ARRAY = replace(
    REQUEST,
    command=("python", "-m", "shards", "build", "/shared/corpus.yaml", "--task", "@TASK@/64"),
    is_training=False,
    array=64,
    concurrent=16,
    nodes=1,
    gpus_per_node=0,
)
PROFILE = Profile(setup=("ulimit -n 65536",), environment={"NCCL_DEBUG": "WARN", "NOTE": "two words"})

SCRIPTS = {
    "gpu": (REQUEST, Profile()),
    "cpu": (CPU, Profile()),
    "everything": (EVERYTHING, PROFILE),
    "no_preflight": (replace(REQUEST, preflight="none"), Profile()),
    "array": (ARRAY, Profile()),
    "after": (replace(CPU, after=Path("/shared/runs/shards")), Profile()),
    "torchrun": (replace(REQUEST, launcher="torchrun"), Profile()),
    "modules": (REQUEST, read_profile("modules")),
    "pyxis": (replace(REQUEST, container="/images/cclm.sqsh"), read_profile("pyxis")),
    "apptainer": (replace(REQUEST, container="/images/cclm.sif"), read_profile("apptainer")),
}


SWEEP = "sweep"


def point(number: int) -> SlurmRequest:
    run = Path(f"/shared/runs/rates/points/{number}")
    command = (*REQUEST.command[:-1], str(run / "recipe.yaml"))
    return replace(
        REQUEST, name=f"rates.{number}", run_folder=run, code_folder=Path("/shared/runs/rates/code"), command=command
    )


def sweep_plan() -> SweepPlan:
    points = tuple(plan_job(point(number), Profile()) for number in range(6))
    return SweepPlan(folder=Path("/shared/runs/rates"), name="rates", points=points, concurrent=2)


def script(name: str) -> str:
    return render_sweep(sweep_plan()) if name == SWEEP else render(plan_job(*SCRIPTS[name]))


if __name__ == "__main__":
    for name in (*SCRIPTS, SWEEP):
        (GOLDEN / f"{name}.sh").write_text(script(name))
