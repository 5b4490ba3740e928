"""Which launcher started this process as one of several, as its environment tells. Standard library only.

A launcher that nobody reads is taken for none: then every process believes to be alone, and does the whole job.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

RANKS_OURS = "RANK"
"""What torchrun, `python -m launch` and most frameworks set; the others have names of their own."""
KNOWN = (
    ("torchrun or `python -m launch`", RANKS_OURS, "WORLD_SIZE"),
    ("srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
    ("Open MPI's mpirun", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("mpiexec (MPICH or Intel MPI)", "PMI_RANK", "PMI_SIZE"),
    ("MVAPICH's mpirun", "MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"),
    ("jsrun", "JSM_NAMESPACE_RANK", "JSM_NAMESPACE_SIZE"),
)
"""Name, and the variables that hold a process's number and how many there are."""


@dataclass(frozen=True, kw_only=True)
class StartedBy:
    """One process of several."""

    launcher: str
    rank: int
    size: int


def started_by(environment: Mapping[str, str]) -> StartedBy | None:
    """Return the launcher that started this process together with others; None if it is alone, or nobody says.

    A batch script of Slurm is alone, however many tasks its job has: only what `srun` starts has a step's number.
    """
    for launcher, rank_name, size_name in KNOWN:
        rank, size = _number(environment, rank_name), _number(environment, size_name)
        if launcher == "srun" and size is None and ("SLURM_STEP_ID" in environment or (rank or 0) > 0):
            size = _number(environment, "SLURM_NTASKS")
        if rank is not None and size is not None and size > 1:
            return StartedBy(launcher=launcher, rank=rank, size=size)
    return None


def _number(environment: Mapping[str, str], name: str) -> int | None:
    text = environment.get(name, "")
    return int(text) if text.isdecimal() else None
