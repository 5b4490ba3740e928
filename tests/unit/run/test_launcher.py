from __future__ import annotations

import pytest

from cclm.errors import ConfigError
from cclm.run.launcher import Place, adopt_place, place_of, started_by

MEET = {"MASTER_ADDR": "node0", "MASTER_PORT": "29500"}
SRUN = {
    "SLURM_JOB_ID": "7",
    "SLURM_NTASKS": "3",
    "SLURM_PROCID": "2",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "3",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "2,1",
}
BATCH = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "PMIX_RANK": "1",
}
HYDRA = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
TORCHRUN = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", **MEET}


@pytest.mark.parametrize(
    ("environment", "launcher", "place"),
    [
        ({"RANK": "1", "WORLD_SIZE": "2"}, "torchrun or `python -m launch`", (1, 2)),
        (SRUN, "srun", (2, 3)),
        ({"SLURM_PROCID": "0", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "2"}, "srun", (0, 2)),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, "srun", (1, 2)),
        (OPEN_MPI, "mpirun (Open MPI)", (1, 4)),
        (HYDRA, "mpiexec (MPICH, Intel MPI)", (1, 2)),
        ({**SRUN, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0", **OPEN_MPI}, "mpirun (Open MPI)", (1, 4)),
        ({"PMIX_RANK": "0", "PMIX_NAMESPACE": "job"}, "a launcher that speaks PMIx", (0, 0)),
        ({"MV2_COMM_WORLD_RANK": "0", "MV2_COMM_WORLD_SIZE": "2"}, "mpirun (MVAPICH)", (0, 2)),
        ({"JSM_NAMESPACE_RANK": "0", "JSM_NAMESPACE_SIZE": "6"}, "jsrun", (0, 6)),
        ({"FLUX_TASK_RANK": "0", "FLUX_JOB_SIZE": "6"}, "flux run", (0, 6)),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "mpirun (Open MPI)", (0, 2)),
        ({"HOROVOD_RANK": "0", "HOROVOD_SIZE": "2"}, "horovodrun", (0, 2)),
    ],
)
def test_one_process_of_several(environment: dict[str, str], launcher: str, place: tuple[int, int]) -> None:
    found = started_by(environment)
    assert found is not None
    assert (found.launcher, (found.rank, found.size)) == (launcher, place)


ALONE: list[dict[str, str]] = [
    {},
    {"PATH": "/bin", "RANK": ""},
    {"WORLD_SIZE": "1"},
    {"RANK": "0", "WORLD_SIZE": "1"},
    {"LOCAL_SIZE": "3"},
    MEET,
    {**BATCH, **MEET},
    BATCH,
    {**BATCH, "SLURM_STEP_ID": "4294967291"},  # a batch script
    {**BATCH, "SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1"},  # the shell of salloc
    {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2"},  # the same on a login node
    {**SRUN, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0", "PMIX_RANK": "0"},
    {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1", "PMIX_RANK": "0"},
    {"PMI_RANK": "0", "PMI_SIZE": "1"},
]


@pytest.mark.parametrize("environment", ALONE)
def test_a_process_that_is_alone(environment: dict[str, str]) -> None:
    assert started_by(environment) is None
    assert place_of(environment) == Place()


@pytest.mark.parametrize("environment", [{"WORLD_SIZE": "2"}, {"RANK": "zero", "WORLD_SIZE": "2"}, {"RANK": "0"}])
def test_half_of_torchruns_variables_are_refused(environment: dict[str, str]) -> None:
    assert started_by(environment) is None
    with pytest.raises(ConfigError, match="expected all or none of the variables"):
        place_of(environment)


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        (SRUN, ["process 2 of 3 that srun started", "launch submit", "scontrol show hostnames"]),
        (OPEN_MPI, ["process 1 of 4 that mpirun (Open MPI) started", "-x MASTER_ADDR -x MASTER_PORT"]),
        (HYDRA, ["process 1 of 2 that mpiexec (MPICH, Intel MPI) started", "-genvlist MASTER_ADDR,MASTER_PORT"]),
        ({"FLUX_TASK_RANK": "0", "FLUX_JOB_SIZE": "6", **MEET}, ["in each process LOCAL_RANK=… LOCAL_WORLD_SIZE=…"]),
        ({"PMIX_RANK": "0"}, ["process 0 of a number that it does not tell", "WORLD_SIZE=…"]),
    ],
)
def test_ranks_that_cannot_find_each_other_are_refused_with_the_command(
    environment: dict[str, str], words: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        place_of(environment)
    assert all(word in str(caught.value) for word in [*words, "launch run --ranks"])


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        (TORCHRUN, (1, 4, 1, 2)),
        ({**TORCHRUN, **SRUN}, (1, 4, 1, 2)),  # torchrun as a task of srun: its own numbers count
        ({**SRUN, **MEET}, (2, 3, 0, 1)),
        ({**SRUN, **MEET, "WORLD_SIZE": "3"}, (2, 3, 0, 1)),
        ({**OPEN_MPI, **MEET}, (1, 4, 1, 2)),
        ({**HYDRA, **MEET}, (1, 2, 1, 2)),
        (
            {"FLUX_TASK_RANK": "0", "FLUX_JOB_SIZE": "6", **MEET, "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "3"},
            (0, 6, 0, 3),
        ),
    ],
)
def test_a_launchers_numbers_are_read_where_the_address_is_known(
    environment: dict[str, str], place: tuple[int, ...]
) -> None:
    found = place_of(environment)
    assert (found.rank, found.world_size, found.local_rank, found.local_world_size) == place
    adopted = dict(environment)
    assert adopt_place(adopted) == found
    assert tuple(int(adopted[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")) == place


def test_the_short_form_of_tasks_per_node() -> None:
    places = [
        place_of({**SRUN, **MEET, "SLURM_STEP_TASKS_PER_NODE": "2(x2),1", "SLURM_NODEID": str(node)})
        for node in range(3)
    ]
    assert [place.local_world_size for place in places] == [2, 2, 1]


def test_variables_of_two_launchers_that_disagree_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"agree with srun: RANK=2 .* WORLD_SIZE=3 .*, got WORLD_SIZE=4"):
        place_of({**SRUN, **MEET, "WORLD_SIZE": "4"})


def test_nothing_is_adopted_by_a_process_that_is_alone() -> None:
    environment: dict[str, str] = {}
    assert adopt_place(environment) == Place()
    assert environment == {}
