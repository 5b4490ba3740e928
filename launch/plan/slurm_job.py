"""A Slurm job as a value: made by a pure function from a request and a profile, printed, compared, or rendered.

    SlurmRequest + Profile ── plan_job ──> SlurmPlan ──> text, JSON ── or ── launch/slurm/script.py ──> RUN/slurm/job.sh

Names of nodes and the port are not known before the job runs; the plan says how they come about.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from launch.plan.profile import Profile
from launch.plan.request import SlurmRequest, check_request
from launch.plan.sweep import POINTS
from launch.slurm.port import FIRST_PORT, NUM_PORTS

SLURM_FOLDER = "slurm"
PLAN_NAME = "plan.json"
SCRIPT_NAME = "job.sh"


@dataclass(frozen=True, kw_only=True)
class SlurmPlan:
    """Everything that the batch script will do."""

    name: str
    run_folder: Path
    code_folder: Path
    checkout: Path
    """Where the code came from."""
    log: Path
    """Output of the batch script; each rank has its own log beside it."""
    directives: Mapping[str, str]
    """Options of sbatch; an empty value is a bare option."""
    array: int
    """Elements of an array job; 0: no array."""
    after: Path | None
    """Run that must be done first."""
    nodes: int
    tasks_per_node: int
    """Tasks that srun starts on a node."""
    ranks_per_node: int
    """The same, or the processes that torchrun starts."""
    gpus_per_node: int
    cpus_per_task: int
    command: tuple[str, ...]
    """What a task runs, behind the shim `launch/slurm/task.py`."""
    is_training: bool
    environment: Mapping[str, str]
    rank_environment: Mapping[str, str]
    """Where each rank's own variables come from."""
    modules: tuple[str, ...]
    setup: tuple[str, ...]
    srun_options: tuple[str, ...]
    task_prefix: tuple[str, ...]
    """What srun runs before the interpreter: a container's `exec`."""
    python: str
    host_python: str
    reads: tuple[str, ...]
    scratch: str | None
    preflight: str
    replace_bad_nodes: bool
    max_tries: int
    hang_s: float
    request: SlurmRequest
    """What the plan was made from, so that it can be made again with changes (`launch/resume.py`)."""
    profile: Profile
    """The same."""

    @property
    def world_size(self) -> int:
        """Ranks of the job."""
        return self.nodes * self.ranks_per_node

    @property
    def script(self) -> Path:
        """Where the rendered script lies."""
        return self.run_folder / SLURM_FOLDER / SCRIPT_NAME

    def to_json(self) -> str:
        """Return the plan as indented JSON with sorted keys; paths become strings."""
        return json.dumps(asdict(self), indent=2, sort_keys=True, default=str)

    def to_text(self) -> str:
        """Return the plan for people."""
        per_node = f"{self.tasks_per_node} task(s) × {self.cpus_per_task} core(s), {self.gpus_per_node} GPU(s)"
        ranks = f"{self.nodes} node(s) × {self.ranks_per_node} = {self.world_size} rank(s)"
        lines = [
            f"{self.name}: {ranks}; a node: {per_node}",
            f"run folder     {self.run_folder}",
            f"code           {self.code_folder} (copied from {self.checkout})",
            f"meeting point  the first node, a free port from {FIRST_PORT} to {FIRST_PORT + NUM_PORTS - 1}",
            f"output         {self.log}, {self.log.parent}/rank_N.log",
            f"success        {'done.json in the run folder' if self.is_training else 'every task ends with code 0'}",
            f"elements       {self.array}, each one task" if self.array else "elements       no array",
            f"after          {self.after or 'nothing'}",
            f"preflight      {self.preflight}{', bad nodes are replaced' if self.replace_bad_nodes else ''}",
            f"gives up       after {self.max_tries} lives without a newer checkpoint",
            "sbatch         " + " ".join(option(*item) for item in self.directives.items()),
            "srun           " + " ".join(self.srun_options),
            *(f"before         {line}" for line in (*(f"module load {name}" for name in self.modules), *self.setup)),
            *(f"environment    {name}={shlex.quote(value)}" for name, value in self.environment.items()),
            *(f"each rank      {name} from {source}" for name, source in self.rank_environment.items()),
            "each task      " + shlex.join((*self.task_prefix, *self.command)),
        ]
        return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class SweepPlan:
    """A job array whose elements are whole runs."""

    folder: Path
    name: str
    points: tuple[SlurmPlan, ...]
    """Each with its own run folder, `folder`/points/N; equal in all that Slurm is asked for."""
    concurrent: int | None
    """How many may run at a time; None: as many as Slurm likes."""

    @property
    def script(self) -> Path:
        """Where the rendered script lies."""
        return self.folder / SLURM_FOLDER / SCRIPT_NAME

    @property
    def directives(self) -> dict[str, str]:
        """Options of sbatch: a point's, but for all of them."""
        elements = self.elements(range(len(self.points)))
        output = str(self.folder / POINTS / "%a" / "logs" / "slurm.log")
        return {**self.points[0].directives, "job-name": self.name, "array": elements, "output": output}

    def elements(self, numbers: Sequence[int]) -> str:
        """Spell some elements as `--array` takes them."""
        whole = len(numbers) == len(self.points)
        text = f"0-{len(numbers) - 1}" if whole else ",".join(map(str, numbers))
        return text + (f"%{self.concurrent}" if self.concurrent else "")


def option(name: str, value: str) -> str:
    """Spell an option as sbatch and srun take it."""
    return f"--{name}={value}" if value else f"--{name}"


def plan_job(request: SlurmRequest, profile: Profile) -> SlurmPlan:
    """Plan a job. Raises ConfigError, with all complaints, for what cannot run."""
    check_request(request, profile)
    is_torchrun = request.launcher == "torchrun"
    python = profile.container_python if request.container else request.python
    command = (python, *request.command[1:]) if request.command[0] in ("python", "python3") else request.command
    cpus = request.cpus_per_task or (profile.cpus_per_gpu if request.gpus_per_node else profile.cpus_per_task)
    tasks = 1 if is_torchrun else request.tasks
    cpus_per_task = cpus * request.tasks // tasks
    plan = SlurmPlan(
        name=request.name,
        run_folder=request.run_folder,
        code_folder=_code(request),
        checkout=request.checkout,
        log=request.run_folder / "logs" / ("slurm_%a.log" if request.array else "slurm.log"),
        directives={},
        array=request.array,
        after=request.after,
        nodes=request.nodes,
        tasks_per_node=tasks,
        ranks_per_node=request.tasks,
        gpus_per_node=request.gpus_per_node,
        cpus_per_task=cpus_per_task,
        command=_torchrun(python, request, command) if is_torchrun else command,
        is_training=request.is_training,
        environment=_environment(request, profile, cpus),
        rank_environment=_rank_environment(is_torchrun),
        modules=profile.modules,
        setup=profile.setup,
        srun_options=(),
        task_prefix=_task_prefix(request, profile),
        python=python,
        host_python=request.host_python,
        reads=request.reads,
        scratch=profile.scratch,
        preflight="none" if request.array else request.preflight,
        replace_bad_nodes=request.replace_bad_nodes,
        max_tries=request.max_tries,
        hang_s=request.hang_s,
        request=request,
        profile=profile,
    )
    return replace(plan, directives=_directives(request, profile, plan), srun_options=_srun(request, profile, plan))


def _directives(request: SlurmRequest, profile: Profile, plan: SlurmPlan) -> dict[str, str]:
    chosen = {
        "job-name": request.name,
        "partition": request.partition or profile.partition,
        "account": request.account or profile.account,
        "qos": request.qos or profile.qos,
        "constraint": request.constraint or profile.constraint,
        "exclude": request.exclude,
        "nodes": str(plan.nodes),
        "ntasks-per-node": str(plan.tasks_per_node),
        "gpus-per-node": str(plan.gpus_per_node) if plan.gpus_per_node else None,
        "cpus-per-task": str(plan.cpus_per_task),
        "time": request.time,
        "array": _array(request) if request.array else None,
        "signal": f"B:USR1@{request.save_s}" if not request.array else None,
        "output": str(plan.log),
        "open-mode": "append",
    }
    return {
        **{name: value for name, value in chosen.items() if value is not None},
        "requeue": "",
        **profile.sbatch,
        **request.sbatch,
    }


def _array(request: SlurmRequest) -> str:
    return f"0-{request.array - 1}" + (f"%{request.concurrent}" if request.concurrent else "")


def _srun(request: SlurmRequest, profile: Profile, plan: SlurmPlan) -> tuple[str, ...]:
    """Options of the step that runs the ranks; the same on every life."""
    options = [
        f"--ntasks-per-node={plan.tasks_per_node}",
        f"--cpus-per-task={plan.cpus_per_task}",  # srun does not inherit it since Slurm 22.05
        "--cpu-bind=cores",
        "--distribution=block:block",
    ]
    if plan.gpus_per_node:
        # Every rank sees the job's GPUs of its node and takes number LOCAL_RANK, as NCCL wants it: no --gpus-per-task.
        options.append(f"--gpus-per-node={plan.gpus_per_node}")
    if request.container and profile.container == "pyxis":
        mounts = ",".join(_mounts(request, profile))
        options += [
            f"--container-image={request.container}",
            f"--container-mounts={mounts}",
            f"--container-workdir={plan.code_folder}",
            *profile.container_flags,
        ]
    return tuple(options)


def _code(request: SlurmRequest) -> Path:
    return request.code_folder or request.run_folder / "code"


def _mounts(request: SlurmRequest, profile: Profile) -> list[str]:
    """What a container must see."""
    shared = [] if request.code_folder is None else [str(request.code_folder)]
    return list(dict.fromkeys((str(request.run_folder), *shared, str(request.checkout), *profile.container_mounts)))


def _task_prefix(request: SlurmRequest, profile: Profile) -> tuple[str, ...]:
    if not request.container or profile.container != "apptainer":
        return ()
    mounts, code = _mounts(request, profile), str(_code(request))
    nvidia = ["--nv"] if request.gpus_per_node else []
    binds = [word for mount in mounts for word in ("--bind", mount)]
    return ("apptainer", "exec", *nvidia, "--pwd", code, *binds, *profile.container_flags, request.container)


def _torchrun(python: str, request: SlurmRequest, command: tuple[str, ...]) -> tuple[str, ...]:
    """One agent per node; the shim fills in what it alone knows."""
    where = ("--nnodes", str(request.nodes), "--nproc-per-node", str(request.tasks), "--node-rank", "@NODE_RANK@")
    meet = ("--master-addr", "@MASTER_ADDR@", "--master-port", "@MASTER_PORT@", "--max-restarts", "0")
    program = command[1:] if command[0] == python else ("--no-python", *command)
    return (python, "-m", "torch.distributed.run", *where, *meet, *program)


def _environment(request: SlurmRequest, profile: Profile, cpus: int) -> dict[str, str]:
    """Variables of every rank; the profile's win."""
    values = {"OMP_NUM_THREADS": str(max(cpus, 1)), "PYTHONUNBUFFERED": "1"}
    if not request.gpus_per_node:
        values["DS_ACCELERATOR"] = "cpu"
    return {**values, **profile.environment}


def _rank_environment(is_torchrun: bool) -> dict[str, str]:
    if is_torchrun:
        return {"RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE": "torchrun, one on each node (SLURM_NODEID)"}
    return {
        "RANK": "SLURM_PROCID",
        "LOCAL_RANK": "SLURM_LOCALID",
        "WORLD_SIZE": "SLURM_NTASKS",
        "LOCAL_WORLD_SIZE": "SLURM_STEP_TASKS_PER_NODE",
        "MASTER_ADDR": "the first of SLURM_JOB_NODELIST",
        "MASTER_PORT": "the batch script",
    }
