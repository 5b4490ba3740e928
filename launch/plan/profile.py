"""What a site is like: a small YAML file with the values that every job there needs.

Shipped ones lie in `launch/profiles/`; an own one is named by its path, or by the variable CCLM_PROFILE.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cclm.files.reading import read_typed
from cclm.files.shipped import find_shipped
from cclm.types import LocalPath, TextOrNothing

PROFILES = Path(__file__).parents[1] / "profiles"
PROFILE_VARIABLE = "CCLM_PROFILE"


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Defaults of a site; the command line wins over them."""

    partition: str | None = None
    """Partition (queue) of a job."""
    account: str | None = None
    """Account that is charged."""
    qos: str | None = None
    """Quality of service."""
    constraint: str | None = None
    """Features that a node must have."""
    cpus_per_gpu: int = 8
    """Cores of a task that has a GPU: one for the step, the others for its data workers."""
    cpus_per_task: int = 1
    """Cores of a task without a GPU."""
    modules: tuple[str, ...] = ()
    """Environment modules to load."""
    setup: tuple[str, ...] = ()
    """Lines of shell that run on the first node before the ranks start, after the modules."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables for every rank, such as NCCL's and gloo's network interface."""
    container: Literal["none", "pyxis", "apptainer"] = "none"
    """"none", "pyxis" or "apptainer": how `--container` is run."""
    container_mounts: tuple[str, ...] = ()
    """Folders that the container sees besides the run folder and the working folder."""
    container_flags: tuple[str, ...] = ()
    """Further flags of srun (pyxis) or of `apptainer exec`."""
    container_python: str = "python3"
    """Python inside the container."""
    scratch: LocalPath | None = None
    """Folder on each node's own disk; preflight writes and measures there."""
    sbatch: Mapping[str, TextOrNothing] = field(default_factory=dict)
    """Further options of sbatch, without the leading dashes; an empty value gives a bare option."""


def read_profile(name: str | None, environment: Mapping[str, str] = os.environ) -> Profile:
    """Read a profile by its shipped name or its path; None: what CCLM_PROFILE says, else "default". Raise ConfigError
    if it does not exist, or has unknown keys (all are named) or values of the wrong kind."""
    name = name or environment.get(PROFILE_VARIABLE) or "default"
    do = "Copy launch/profiles/default.yaml and adapt it."
    path = find_shipped(name, PROFILES, ".yaml", where="--profile", do=do)
    do = "See launch/plan/profile.py for every key with its meaning."
    return read_typed(Profile, path, expected="a profile", do=do)
