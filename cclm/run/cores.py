"""How many threads and loader workers a rank gets: from the cores that it may use, not from a constant.

A rank's cores are those of its affinity mask, divided by the ranks of its machine that have the same ones; fewer where
Slurm promised fewer (`SLURM_CPUS_PER_TASK` without binding) or the container has less time. On a GPU the process itself
keeps two (Python, and the autograd engine's thread), loader workers take the others; without one all compute. No number
of a run depends on it.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cclm.run.machine import CGROUP_QUOTA, read_quota

MOST_WORKERS = 16
"""Each holds a finished batch; a GPU's step has not been seen to need more."""
SLURM_CORES = "SLURM_CPUS_PER_TASK"
THREADS = "OMP_NUM_THREADS"


@dataclass(frozen=True, kw_only=True)
class RankCores:
    """What a rank tells the others about itself."""

    host: str
    mask: tuple[int, ...]
    quota: float | None
    """Cores' worth of time of its container; None without a limit."""
    promised: int | None
    """What Slurm gives each task."""
    task: str
    """Which one this is in: ranks that torchrun or `launch run` starts inside of one share what it was given."""


@dataclass(frozen=True, kw_only=True)
class CoreShare:
    """What a rank takes of its machine."""

    cores: int
    threads: int
    num_workers: int

    def __str__(self) -> str:
        return f"{self.cores} core(s) a rank: {self.threads} thread(s), {self.num_workers} loader worker(s)"


def own_cores(environment: Mapping[str, str] = os.environ, quota: Path = CGROUP_QUOTA) -> RankCores:
    """Return what this process may use."""
    promised = environment.get(SLURM_CORES, "")
    return RankCores(
        host=socket.gethostname(),
        mask=tuple(sorted(os.sched_getaffinity(0))),
        quota=read_quota(quota),
        promised=int(promised) if promised.isdecimal() and int(promised) > 0 else None,
        task=environment.get("SLURM_PROCID", ""),
    )


def share_cores(
    everyone: Sequence[RankCores], rank: int, *, has_gpu: bool, environment: Mapping[str, str]
) -> CoreShare:
    """Return the share of one of all ranks. OMP_NUM_THREADS, which torchrun and `python -m launch` set, wins."""
    own = everyone[rank]
    near = [other for other in everyone if other.host == own.host]
    sharing = sum(1 for other in near if set(other.mask) & set(own.mask))
    limits = [len(own.mask) / sharing]
    limits += [] if own.quota is None else [own.quota / len(near)]
    limits += [] if own.promised is None else [own.promised / sum(other.task == own.task for other in near)]
    cores = max(1, int(min(limits)))
    kept = 1 if cores < 4 else 2
    num_workers = min(cores - kept, MOST_WORKERS) if has_gpu else 0
    given = environment.get(THREADS, "").partition(",")[0]  # one number for each level of nested regions
    threads = int(given) if given.isdecimal() and int(given) > 0 else max(1, cores - num_workers)
    return CoreShare(cores=cores, threads=threads, num_workers=num_workers)
