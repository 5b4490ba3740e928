"""What a job is planned from: what a site is like (a profile), and what a user asks of the cluster, before anything is
looked up. Most fields of a request are options of `submit`, which shows their docstrings as help
(`cclm/files/describe.py`).

A profile is a small YAML file with the values that every job of a site needs. Shipped ones lie in `launch/profiles/`;
an own one is named by its path, or by the variable CCLM_PROFILE.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from cclm.errors import ConfigError
from cclm.files.reading import read_typed
from cclm.files.shipped import find_shipped
from cclm.types import LocalPath, TextOrNothing
from launch.plan.network import AUTO

PROFILES = Path(__file__).parents[1] / "profiles"
PROFILE_VARIABLE = "CCLM_PROFILE"
LAUNCHERS = ("srun", "torchrun")
PREFLIGHTS = ("full", "quick", "none")
SBATCH_OPTIONS = ("partition", "account", "qos", "constraint", "exclude")
"""Fields that are passed on to sbatch as they are."""
DEFAULT_TIME = "24:00:00"
_TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")
SINGLE_OPTION = re.compile(r"[a-z][a-z0-9-]*")
OURS = {name: name for name in (*SBATCH_OPTIONS, "nodes", "gpus-per-node", "cpus-per-task", "time", "array")}
OURS |= {"job-name": "name", "ntasks-per-node": "tasks-per-node", "signal": "save-s", "dependency": "after"}
OURS |= dict.fromkeys(("output", "requeue", "open-mode"), "")
"""Options of sbatch that the plan decides, by the option that it decides them from."""
GPUS = re.compile(r"(gpus|gpus-per-task|gpus-per-socket)=|(gres|tres-per-task|tres-per-node)=.*gpu")
"""Ways to ask sbatch for GPUs, of which a plan without GPUs would not know."""


@dataclass(frozen=True, kw_only=True)
class SiteOptions:
    """Options of sbatch that a site has values for: where a job may run, and who pays."""

    partition: str | None = None
    """Partition (queue) of the job."""
    account: str | None = None
    """Account that is charged."""
    qos: str | None = None
    """Quality of service."""
    constraint: str | None = None
    """Features that a node must have."""


@dataclass(frozen=True, kw_only=True)
class Profile(SiteOptions):
    """Defaults of a site; the command line wins over them."""

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
    """Further options of sbatch, without the leading dashes; an empty value gives a bare option. They win
    over defaults, and `--time`, `--cpus-per-task`, `--partition` and the like win over them."""


@dataclass(frozen=True, kw_only=True)
class SlurmRequest(SiteOptions):
    """A job of equal tasks on equal nodes."""

    run_folder: Path
    checkout: Path
    """Folder of the code that is copied into the run folder."""
    code_folder: Path | None = None
    """Where that copy lies, if runs share one; the run folder's `code` is a link to it. None: in the run folder."""
    command: tuple[str, ...]
    """What every task runs, in the copied code; a first word "python" means the environment's interpreter."""
    is_training: bool = True
    """Success is the run's done marker; else every task must end with code 0."""
    reads: tuple[str, ...] = ()
    """Folders that preflight looks into on every node."""
    python: str = "python3"
    """Interpreter of the ranks where there is no container, and of the batch script's own decisions."""

    name: str
    """Name of the job; default: the run folder's."""
    nodes: int = 1
    """Nodes of the job."""
    gpus_per_node: int = 0
    """GPUs on a node; 0: ranks on the CPU."""
    tasks_per_node: int | None = None
    """Ranks on a node; default: one per GPU, or one."""
    cpus_per_task: int | None = None
    """Cores of a rank; default: the profile's."""
    time: str | None = None
    """Limit, [days-]hours:minutes:seconds; default: that of the profile's sbatch, or 24:00:00."""
    exclude: str | None = None
    """Nodes to leave out, as for sbatch."""
    sbatch: Mapping[str, str] = field(default_factory=dict)
    """Any other option of sbatch; an empty value gives a bare option."""
    array: int = 0
    """Tasks of an array job, each on its own; @TASK@ in the command is a task's number. 0: no array."""
    concurrent: int | None = None
    """Array tasks that may run at a time."""
    after: Path | None = None
    """Begin when the run in this folder is done."""

    container: str | None = None
    """Image of a container; the profile says how it is run."""
    launcher: str = "srun"
    """Who starts the ranks on a node: srun (one task per rank) or torchrun (one task per node)."""
    network: str = AUTO
    """Interface, NCCL and gloo settings: auto (each node looks), infiniband, roce, efa, ethernet or none."""

    preflight: str = "full"
    """What is checked before the ranks start: full, quick (nothing that imports torch) or none."""
    preflight_s: int = 600
    """Seconds that each step of it may take: enough for many nodes to import torch from a cold shared disk."""
    replace_bad_nodes: bool = False
    """Submit again without nodes that preflight finds bad."""
    max_tries: int = 3
    """Attempts without a newer checkpoint after which the job gives up."""
    hang_s: float = 1800.0
    """Kill a rank whose status has not changed for so many seconds; 0: never."""
    save_s: int = 300
    """Seconds before the time limit at which the ranks are asked to save."""

    @property
    def ranks_per_node(self) -> int:
        """Ranks on a node."""
        return self.tasks_per_node if self.tasks_per_node is not None else max(self.gpus_per_node, 1)

    @property
    def world_size(self) -> int:
        """Ranks of the job."""
        return self.nodes * self.ranks_per_node


def read_profile(name: str | None, environment: Mapping[str, str] = os.environ) -> Profile:
    """Read a profile by its shipped name or its path; None: what CCLM_PROFILE says, else "default". Raise ConfigError
    if it does not exist, or has unknown keys (all are named) or values of the wrong kind."""
    name = name or environment.get(PROFILE_VARIABLE) or "default"
    do = "Copy launch/profiles/default.yaml and adapt it."
    path = find_shipped(name, PROFILES, ".yaml", where="--profile", do=do)
    do = "See launch/plan/request.py for every key with its meaning."
    return read_typed(Profile, path, expected="a profile", do=do)


def time_of(request: SlurmRequest, profile: Profile) -> str:
    """Return the time limit of a job."""
    return request.time or profile.sbatch.get("time") or DEFAULT_TIME


def seconds_of(time: str) -> int | None:
    """Return the seconds of a time limit in sbatch's forms; None for no limit ("UNLIMITED", "0")."""
    if time.upper() in ("UNLIMITED", "INFINITE", "0"):
        return None
    match = _TIME.fullmatch(time)
    if match is None:
        raise ConfigError(
            where="--time", expected="[days-]hours:minutes:seconds, minutes:seconds or minutes", got=repr(time),
            do="For example --time 24:00:00.",
        )  # fmt: skip
    days, *parts = (int(part or 0) for part in match.groups())
    # Days are followed by hours; else only three parts begin with them.
    hours, minutes, seconds = parts if match[1] or match[4] else (0, *parts[:2])
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def check_request(request: SlurmRequest, profile: Profile, stored: SlurmRequest | None = None) -> None:
    """Raise ConfigError, with everything that is wrong, for what cannot be planned; not for what is as it was in
    `stored`, a request that was submitted before, maybe under other rules."""
    known = set() if stored is None else set(_problems(stored, profile))
    problems = [problem for problem in _problems(request, profile) if problem not in known]
    if problems:
        got, do = "; ".join(problems), "Nothing was submitted."
        raise ConfigError(where="submit", expected="a job that can run", got=got, do=do)


def changed_request(request: SlurmRequest, changes: Mapping[str, Any]) -> SlurmRequest:
    """Return a stored request with other fields, which win over its own options of sbatch."""
    ours = {key for key, name in OURS.items() if name.replace("-", "_") in changes}
    sbatch = {key: value for key, value in request.sbatch.items() if key not in ours}
    return replace(request, **changes, sbatch=sbatch)


CLEANING = frozenset({"--cleanenv", "-e", "--containall", "-C"})
"""Flags of Apptainer that keep the environment out of the container."""


def _problems(request: SlurmRequest, profile: Profile) -> Iterator[str]:
    least = {
        0: ("gpus_per_node", "array", "save_s", "hang_s"),
        1: ("nodes", "tasks_per_node", "cpus_per_task", "concurrent", "max_tries", "preflight_s"),
    }
    for smallest, names in least.items():
        for name in names:
            count = getattr(request, name)
            if count is not None and not count >= smallest:  # nan is not, either
                yield f"--{name.replace('_', '-')} {count:g} is below {smallest}"
    for name in ("name", *SBATCH_OPTIONS):
        if not (getattr(request, name) or "").isprintable():  # the rest of it would be a line of the script
            yield f"--{name} {getattr(request, name)!r} has a line break, or another character that does not print"
    tasks = request.ranks_per_node
    if request.array > 0 and (request.nodes, tasks) != (1, 1):
        yield f"--array {request.array} on {request.nodes} node(s) × {tasks} task(s): each of its tasks is a job alone"
    if request.gpus_per_node > 0 and tasks > request.gpus_per_node:
        yield f"{tasks} tasks per node for {request.gpus_per_node} GPU(s): one task needs one GPU"
    time = time_of(request, profile)
    if (limit_s := seconds_of(time)) is not None and limit_s <= request.save_s:
        yield f"--time {time} is not longer than the {request.save_s} s for saving before it (--save-s)"
    if request.container and profile.container == "none":
        yield "--container without a profile that says how to run it (container: pyxis or apptainer)"
    cleaning = CLEANING.intersection(profile.container_flags) if profile.container == "apptainer" else set()
    if request.container and cleaning:
        yield f"container_flags {', '.join(sorted(cleaning))}: the ranks get their place from the environment"
    for key, value in request.sbatch.items():
        if not SINGLE_OPTION.fullmatch(key) or "\n" in value:
            yield f"--sbatch {key}={value} is no option of sbatch"
        elif key in OURS:
            yield f"--sbatch {key}: use --{OURS[key]}" if OURS[key] else f"--sbatch {key}: the plan sets it"
        elif not request.gpus_per_node and GPUS.match(f"{key}={value}"):
            yield f"--sbatch {key}={value} without --gpus-per-node: the ranks would run on the CPU"
    if re.search(r"[\s%'\"\\$`]", str(request.run_folder)):
        yield f"the run folder {str(request.run_folder)!r} has a character that sbatch or the shell would expand"
