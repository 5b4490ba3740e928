"""What a site is like: a small YAML file with the values that every job there needs.

Shipped ones lie in `launch/profiles/`; an own one is named by its path, or by the variable CCLM_PROFILE.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from cclm.errors import ConfigError
from cclm.files.reading import read_yaml

PROFILES = Path(__file__).parents[1] / "profiles"
PROFILE_VARIABLE = "CCLM_PROFILE"
CONTAINERS = ("none", "pyxis", "apptainer")


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
    container: str = "none"
    """"none", "pyxis" or "apptainer": how `--container` is run."""
    container_mounts: tuple[str, ...] = ()
    """Folders that the container sees besides the run folder and the working folder."""
    container_flags: tuple[str, ...] = ()
    """Further flags of srun (pyxis) or of `apptainer exec`."""
    container_python: str = "python3"
    """Python inside the container."""
    scratch: str | None = None
    """Folder on each node's own disk; preflight writes and measures there."""
    sbatch: Mapping[str, str] = field(default_factory=dict)
    """Further options of sbatch, without the leading dashes; an empty value gives a bare option."""


def read_profile(name: str | None, environment: Mapping[str, str] = os.environ) -> Profile:
    """Read a profile by its shipped name or its path; None: what CCLM_PROFILE says, else "default". Raise ConfigError
    if it does not exist, or has unknown keys (all are named) or values of the wrong kind."""
    name = name or environment.get(PROFILE_VARIABLE) or "default"
    path = Path(name) if Path(name).is_file() else PROFILES / f"{name}.yaml"
    if not path.is_file():
        shipped = ", ".join(sorted(item.stem for item in PROFILES.glob("*.yaml")))
        raise ConfigError(
            where="--profile", expected=f"the path of a YAML file or one of {shipped}", got=repr(name),
            do="Copy launch/profiles/default.yaml and adapt it.",
        )  # fmt: skip
    content = read_yaml(path, expected="a profile", do="Start from launch/profiles/default.yaml.") or {}
    complaints = list(_complaints(content)) if isinstance(content, dict) else ["no mapping"]
    if complaints:
        raise ConfigError(
            where=str(path), expected="the keys of a profile", got="; ".join(complaints),
            do="See launch/plan/profile.py for every key with its meaning.",
        )  # fmt: skip
    return Profile(**{key: _plain(value) for key, value in content.items()})


def _complaints(content: Mapping[str, Any]) -> list[str]:
    kinds = {item.name: str(item.type) for item in fields(Profile)}
    found = []
    for key, value in content.items():
        if key not in kinds:
            near = difflib.get_close_matches(key, kinds, n=1)
            found.append(f"unknown key {key}" + (f" (did you mean {near[0]}?)" if near else ""))
        elif kinds[key].startswith("tuple") != isinstance(value, list):
            found.append(f"{key} must {'' if kinds[key].startswith('tuple') else 'not '}be a list")
        elif kinds[key].startswith("Mapping") != isinstance(value, dict):
            found.append(f"{key} must {'' if kinds[key].startswith('Mapping') else 'not '}be a mapping")
        elif kinds[key] == "int" and not isinstance(value, int):
            found.append(f"{key} must be a whole number")
    if content.get("container", "none") not in CONTAINERS:
        found.append(f"container must be one of {', '.join(CONTAINERS)}")
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): "" if item is None else str(item) for key, item in value.items()}
    return tuple(map(str, value)) if isinstance(value, list) else value
