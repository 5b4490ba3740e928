"""A Slurm job as a value: made by a pure function from a request and a profile, printed, compared, or rendered.

    SlurmRequest + Profile ── plan_job ──> SlurmPlan ──> text, JSON ── or ── launch/slurm/submit.py ──> RUN/slurm/job.sh

Names of nodes and the port are not known before the job runs; the plan says how they come about.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from cclm.errors import ConfigError
from cclm.files.node import node_of
from cclm.files.reading import raise_problems, read_json
from cclm.files.typed import Converter
from launch.plan.network import network_lines
from launch.plan.request import SBATCH_OPTIONS, Profile, SlurmRequest, check_request, time_of
from launch.plan.sweep import POINTS

SLURM_FOLDER = "slurm"
PLAN_NAME = "plan.json"
SCRIPT_NAME = "job.sh"
FIRST_PORT, NUM_PORTS = 20000, 20000
"""Where the ranks of jobs meet."""
PLAN_VERSION = 2
"""Of the plan, and of what the code beside it writes and reads."""


@dataclass(frozen=True, kw_only=True)
class SlurmPlan:
    """Everything that the batch script will do."""

    request: SlurmRequest
    """What the plan was made from, so that it can be made again with changes (`launch/slurm/submit.py`)."""
    profile: Profile
    log: Path
    """Output of the batch script; each rank has its own log beside it."""
    code_folder: Path
    directives: Mapping[str, str]
    """Options of sbatch; an empty value is a bare option."""
    tasks_per_node: int
    """Tasks that srun starts on a node: the ranks, or one torchrun."""
    ranks_per_node: int
    cpus_per_task: int
    command: tuple[str, ...]
    """What a task runs, under `launch/slurm/task.py`."""
    environment: Mapping[str, str]
    srun_options: tuple[str, ...]
    task_prefix: tuple[str, ...]
    """What srun runs before the interpreter: a container's `exec`."""
    python: str
    preflight: str
    version: int = 1

    @property
    def run_folder(self) -> Path:
        """Folder of the run."""
        return self.request.run_folder

    @property
    def script(self) -> Path:
        """Where the rendered script lies."""
        return self.run_folder / SLURM_FOLDER / SCRIPT_NAME

    def to_json(self) -> str:
        """Return the plan as indented JSON with sorted keys; paths become strings."""
        return json.dumps(asdict(self), indent=2, sort_keys=True, default=str)

    def to_text(self) -> str:
        """Return the plan for people."""
        asked, before = self.request, (*(f"module load {name}" for name in self.profile.modules), *self.profile.setup)
        per_node = f"{self.tasks_per_node} task(s) × {self.cpus_per_task} core(s), {asked.gpus_per_node} GPU(s)"
        ranks = f"{asked.nodes} node(s) × {self.ranks_per_node} = {asked.world_size} rank(s)"
        lines = [
            f"{asked.name}: {ranks}; a node: {per_node}",
            f"run folder     {self.run_folder}",
            f"code           {self.code_folder} (copied from {asked.checkout})",
            f"meeting point  the first node, a free port from {FIRST_PORT} to {FIRST_PORT + NUM_PORTS - 1}",
            f"output         {self.log}, {self.log.parent}/rank_N.log",
            f"success        {'done.json in the run folder' if asked.is_training else 'every task ends with code 0'}",
            f"array          {f'{asked.array} tasks, each on its own' if asked.array else 'no array'}",
            f"after          {asked.after or 'nothing'}",
            f"preflight      {self.preflight}{', bad nodes are replaced' if asked.replace_bad_nodes else ''}",
            *(f"network        {line}" for line in network_lines(asked.network)),
            f"gives up       after {asked.max_tries} attempts without a newer checkpoint",
            "sbatch         " + " ".join(option(*item) for item in self.directives.items()),
            "srun           " + " ".join(self.srun_options),
            *(f"before         {line}" for line in before),
            *(f"environment    {name}={shlex.quote(value)}" for name, value in self.environment.items()),
            "each task      " + shlex.join((*self.task_prefix, *self.command)),
        ]
        return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class SweepPlan:
    """A job array whose tasks are whole runs."""

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
        tasks = array_tasks(range(len(self.points)), len(self.points), self.concurrent)
        output = str(self.folder / POINTS / "%a" / "logs" / "slurm.log")
        return {**self.points[0].directives, "job-name": self.name, "array": tasks, "output": output}


def array_tasks(numbers: Sequence[int], count: int, concurrent: int | None) -> str:
    """Spell some of `count` tasks as `--array` takes them."""
    text = f"0-{count - 1}" if len(numbers) == count else ",".join(map(str, numbers))
    return text + (f"%{concurrent}" if concurrent else "")


def option(name: str, value: str) -> str:
    """Spell an option as sbatch and srun take it."""
    return f"--{name}={value}" if value else f"--{name}"


def plan_job(request: SlurmRequest, profile: Profile, stored: SlurmRequest | None = None) -> SlurmPlan:
    """Plan a job; raise ConfigError, with everything that is wrong, for what cannot run (see `check_request`)."""
    check_request(request, profile, stored)
    is_torchrun = request.launcher == "torchrun"
    python = profile.container_python if request.container else request.python
    command = (python, *request.command[1:]) if request.command[0] in ("python", "python3") else request.command
    cpus = request.cpus_per_task or (profile.cpus_per_gpu if request.gpus_per_node else profile.cpus_per_task)
    tasks = 1 if is_torchrun else request.ranks_per_node
    plan = SlurmPlan(
        request=request,
        profile=profile,
        log=request.run_folder / "logs" / ("slurm_%a.log" if request.array else "slurm.log"),
        code_folder=request.code_folder or request.run_folder / "code",
        directives={},
        tasks_per_node=tasks,
        ranks_per_node=request.ranks_per_node,
        cpus_per_task=cpus * request.ranks_per_node // tasks,
        command=_torchrun(python, request, command) if is_torchrun else command,
        environment={
            "OMP_NUM_THREADS": str(max(cpus, 1)),
            "PYTHONUNBUFFERED": "1",
            **({} if request.gpus_per_node else {"DS_ACCELERATOR": "cpu"}),
            **profile.environment,
        },
        srun_options=(),
        task_prefix=(),
        python=python,
        preflight="none" if request.array else request.preflight,
        version=PLAN_VERSION,
    )
    return replace(plan, directives=_directives(plan), srun_options=_srun(plan), task_prefix=_task_prefix(plan))


def _directives(plan: SlurmPlan) -> dict[str, str]:
    request = plan.request
    chosen = {
        "job-name": request.name,
        **{name: getattr(request, name) or getattr(plan.profile, name, None) for name in SBATCH_OPTIONS},
        "nodes": str(request.nodes),
        "ntasks-per-node": str(plan.tasks_per_node),
        "gpus-per-node": str(request.gpus_per_node) if request.gpus_per_node else None,
        "cpus-per-task": str(plan.cpus_per_task),
        "time": time_of(request, plan.profile),
        "array": array_tasks(range(request.array), request.array, request.concurrent) if request.array else None,
        "signal": f"B:USR1@{request.save_s}" if not request.array else None,
        "output": str(plan.log),
        "open-mode": "append",
    }
    ours = {**{name: value for name, value in chosen.items() if value is not None}, "requeue": ""}
    asked = {name for name in SBATCH_OPTIONS if getattr(request, name)}
    asked |= {name for name, value in (("time", request.time), ("cpus-per-task", request.cpus_per_task)) if value}
    return {**ours, **plan.profile.sbatch, **{name: ours[name] for name in asked}, **request.sbatch}


def _srun(plan: SlurmPlan) -> tuple[str, ...]:
    """Options of the step that runs the ranks; the same in every attempt."""
    request, profile = plan.request, plan.profile
    options = [
        f"--ntasks-per-node={plan.tasks_per_node}",
        f"--cpus-per-task={plan.cpus_per_task}",  # srun does not inherit it since Slurm 22.05
        "--cpu-bind=cores",
        "--distribution=block:block",
    ]
    if request.gpus_per_node:
        # Every rank sees the job's GPUs of its node and takes number LOCAL_RANK, as NCCL wants it: no --gpus-per-task.
        options.append(f"--gpus-per-node={request.gpus_per_node}")
    if request.container and profile.container == "pyxis":
        options += [
            f"--container-image={request.container}",
            f"--container-mounts={','.join(_mounts(plan))}",
            f"--container-workdir={plan.code_folder}",
            *profile.container_flags,
        ]
    return tuple(options)


def _mounts(plan: SlurmPlan) -> list[str]:
    shared = () if plan.request.code_folder is None else (plan.code_folder,)
    folders = (plan.run_folder, *shared, plan.request.checkout, *plan.profile.container_mounts)
    return list(dict.fromkeys(map(str, folders)))


def _task_prefix(plan: SlurmPlan) -> tuple[str, ...]:
    image, profile = plan.request.container, plan.profile
    if not image or profile.container != "apptainer":
        return ()
    nvidia = ["--nv"] if plan.request.gpus_per_node else []
    binds = [word for mount in _mounts(plan) for word in ("--bind", mount)]
    return ("apptainer", "exec", *nvidia, "--pwd", str(plan.code_folder), *binds, *profile.container_flags, image)


def _torchrun(python: str, request: SlurmRequest, command: tuple[str, ...]) -> tuple[str, ...]:
    """One agent per node; the task fills in what it alone knows."""
    size = f"--nnodes {request.nodes} --nproc-per-node {request.ranks_per_node} --max-restarts 0"
    meet = "--node-rank @NODE_RANK@ --master-addr @MASTER_ADDR@ --master-port @MASTER_PORT@"
    program = command[1:] if command[0] == python else ("--no-python", *command)
    return (python, "-m", "torch.distributed.run", *size.split(), *meet.split(), *program)


def read_plan(run_folder: Path) -> SlurmPlan:
    """Return the plan of a run that was submitted to Slurm. Raise ConfigError if it never was, or the folder has been
    moved since."""
    plan = find_plan(run_folder)
    if plan is None:
        raise ConfigError(
            where=str(run_folder), expected="a run that was submitted to Slurm", got=f"no {SLURM_FOLDER}/{PLAN_NAME}",
            do="Use `python -m launch submit`; a run on this machine goes on with the command that began it.",
        )  # fmt: skip
    if plan.run_folder.resolve() != run_folder.resolve():
        raise ConfigError(
            where=str(run_folder), expected=f"the folder {plan.run_folder}, as its plan and script say",
            got="another place: it was moved or copied", do="Move it back, or submit its recipe anew.",
        )  # fmt: skip
    return plan


def find_plan(run_folder: Path) -> SlurmPlan | None:
    """Return the plan that lies in a run folder, wherever that was when it was made; None if there is none. Raise
    ConfigError if it cannot be read."""
    path = run_folder / SLURM_FOLDER / PLAN_NAME
    values = read_json(path, None)
    if values is None:
        return None
    converter = Converter(is_resolved=True)
    plan: SlurmPlan = converter.convert(node_of(values, str(path)), SlurmPlan)
    wrong = [problem for problem in converter.problems if problem.kind != "unknown_key"]  # another version's
    raise_problems(wrong, str(path), "the plan of a job", "Give the command of the submission again.")
    return plan
