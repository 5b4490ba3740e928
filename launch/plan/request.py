"""What a user asks of the cluster, before anything is looked up."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cclm.errors import ConfigError
from launch.plan.profile import Profile

_TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")
SINGLE_OPTION = re.compile(r"[a-z][a-z0-9-]*")
OURS = frozenset({"job-name", "nodes", "ntasks-per-node", "time", "output", "signal", "requeue", "open-mode"})
OURS |= {"array", "dependency"}
"""Options of sbatch that the plan decides."""


@dataclass(frozen=True, kw_only=True)
class SlurmRequest:
    """A job of equal tasks on equal nodes."""

    name: str
    """Name of the job."""
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
    array: int = 0
    """Elements of an array job, each one task; `@TASK@` in the command is its number.
    0: no array."""
    concurrent: int | None = None
    """How many elements may run at a time."""
    after: Path | None = None
    """Run folder of a run that must be done first."""
    nodes: int = 1
    gpus_per_node: int = 0
    tasks_per_node: int | None = None
    """Ranks on a node; None: one per GPU, or one."""
    cpus_per_task: int | None = None
    """None: what the profile says."""
    time: str = "24:00:00"
    """Limit as sbatch takes it: [days-]hours:minutes:seconds."""
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    exclude: str | None = None
    container: str | None = None
    """Image: a file, or what pyxis takes as a name."""
    sbatch: Mapping[str, str] = field(default_factory=dict)
    """Further options of sbatch; an empty value gives a bare option."""
    launcher: str = "srun"
    """"srun": one task per rank; "torchrun": one task per node, which starts the ranks."""
    preflight: str = "full"
    """"full", "quick" (nothing that imports torch) or "none"."""
    replace_bad_nodes: bool = False
    """Submit again without the nodes that preflight finds bad."""
    max_tries: int = 3
    """Lives without a newer checkpoint after which the job gives up."""
    hang_s: float = 1800.0
    """A rank whose status is older than this is killed; 0: never."""
    save_s: int = 300
    """Seconds before the time limit at which the ranks are asked to save."""
    python: str = "python3"
    """Interpreter of the ranks where there is no container."""
    host_python: str = "python3"
    """Interpreter of the batch script's own decisions, on the first node, outside any container."""

    @property
    def tasks(self) -> int:
        """Ranks on a node."""
        return self.tasks_per_node if self.tasks_per_node is not None else max(self.gpus_per_node, 1)


def seconds_of(time: str) -> int | None:
    """Seconds of a time limit in sbatch's forms; None for no limit ("UNLIMITED", "0")."""
    if time.upper() in ("UNLIMITED", "INFINITE", "0"):
        return None
    match = _TIME.fullmatch(time)
    if match is None:
        raise ConfigError(
            where="--time", expected="[days-]hours:minutes:seconds, minutes:seconds or minutes", got=repr(time),
            do="For example --time 24:00:00.",
        )  # fmt: skip
    days, first, second, third = match.groups()
    if days is not None:
        parts = (int(days) * 24 + int(first), int(second or 0), int(third or 0))
    elif third is not None:
        parts = (int(first), int(second), int(third))
    else:
        parts = (0, int(first), int(second or 0))
    return parts[0] * 3600 + parts[1] * 60 + parts[2]


def check_request(request: SlurmRequest, profile: Profile) -> None:
    """Refuse what cannot be planned, with all complaints at once.

    Raises:
        ConfigError: listing every complaint.
    """
    complaints = list(_complaints(request, profile))
    if complaints:
        raise ConfigError(
            where="submit", expected="a job that can run", got="; ".join(complaints), do="Nothing was submitted."
        )


CLEANING = frozenset({"--cleanenv", "-e", "--containall", "-C"})
"""Flags of Apptainer that keep the environment out of the container."""


def _complaints(request: SlurmRequest, profile: Profile) -> Iterator[str]:
    zeros: dict[str, float | None] = {
        "--gpus-per-node": request.gpus_per_node,
        "--array": request.array,
        "--save-s": request.save_s,
        "--hang-s": request.hang_s,
    }
    ones: dict[str, float | None] = {
        "--nodes": request.nodes,
        "--tasks-per-node": request.tasks,
        "--cpus-per-task": request.cpus_per_task,
        "--concurrent": request.concurrent,
        "--max-tries": request.max_tries,
    }
    for least, counts in enumerate((zeros, ones)):
        for name, count in counts.items():
            if count is not None and count < least:
                yield f"{name} {count:g} is below {least}"
    if request.array > 0 and (request.nodes, request.tasks) != (1, 1):
        yield f"--array {request.array} on {request.nodes} node(s) × {request.tasks} task(s): an element is one task"
    if request.gpus_per_node > 0 and request.tasks > request.gpus_per_node:
        yield f"{request.tasks} tasks per node for {request.gpus_per_node} GPU(s): one task needs one GPU"
    limit_s = seconds_of(request.time)
    if limit_s is not None and limit_s <= request.save_s:
        yield f"--time {request.time} is not longer than the {request.save_s} s for saving before it (--save-s)"
    if request.container and profile.container == "none":
        yield "--container without a profile that says how to run it (container: pyxis or apptainer)"
    cleaning = CLEANING.intersection(profile.container_flags) if profile.container == "apptainer" else set()
    if request.container and cleaning:
        yield f"container_flags {', '.join(sorted(cleaning))}: the ranks get their place from the environment"
    for key, value in request.sbatch.items():
        if not SINGLE_OPTION.fullmatch(key) or "\n" in value:
            yield f"--sbatch {key}={value} is no option of sbatch"
        elif key in OURS:
            yield f"--sbatch {key}: use --{key}" if key in ("nodes", "time") else f"--sbatch {key}: the plan sets it"
    if re.search(r"[\s%'\"\\$`]", str(request.run_folder)):
        yield f"the run folder {str(request.run_folder)!r} has a character that sbatch or the shell would expand"
