from __future__ import annotations

import pytest

from cclm.run.launcher import started_by


@pytest.mark.parametrize(
    ("environment", "launcher", "place"),
    [
        ({"RANK": "1", "WORLD_SIZE": "2"}, "torchrun or `python -m launch`", (1, 2)),
        ({"SLURM_PROCID": "0", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2"}, "srun", (0, 2)),
        ({"SLURM_PROCID": "0", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "2"}, "srun", (0, 2)),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, "srun", (1, 2)),
        ({"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4"}, "Open MPI's mpirun", (3, 4)),
        ({"PMI_RANK": "0", "PMI_SIZE": "8"}, "mpiexec (MPICH or Intel MPI)", (0, 8)),
    ],
)
def test_one_process_of_several(environment: dict[str, str], launcher: str, place: tuple[int, int]) -> None:
    found = started_by(environment)
    assert found is not None
    assert (found.launcher, (found.rank, found.size)) == (launcher, place)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"RANK": "0", "WORLD_SIZE": "1"},
        {"WORLD_SIZE": "2"},
        {"RANK": "zero", "WORLD_SIZE": "2"},
        {"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_JOB_ID": "7"},  # a batch script
        {"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1"},
        {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1"},
    ],
)
def test_a_process_that_is_alone(environment: dict[str, str]) -> None:
    assert started_by(environment) is None
