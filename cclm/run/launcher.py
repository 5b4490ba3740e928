"""Which launcher started this process as one of several, and what place it gave it. Standard library only.

A launcher that nobody reads is taken for none: then every process believes to be alone, and does the whole job. So the
numbers of every launcher below are read; where rank 0 listens only torchrun and `python -m launch` say, and without it
(MASTER_ADDR, MASTER_PORT) a process of several is refused, with the command that works.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

from cclm.errors import ConfigError

NUMBERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
"""What torchrun, `python -m launch` and most frameworks set, and what a process of several must know of itself."""
ADDRESS = ("MASTER_ADDR", "MASTER_PORT")
"""Where the ranks meet."""
SRUN = "srun"
NO_STEP = 0xFFFFFFF0
"""Step numbers from here on are no steps of srun: the batch script, an interactive shell."""
EXPORT = "export MASTER_ADDR=HOST_OF_RANK_0 MASTER_PORT=29500"


@dataclass(frozen=True, kw_only=True)
class Launcher:
    """The names of a launcher's variables; of several names, the first that is set counts."""

    name: str
    rank: str
    size: str
    local_rank: tuple[str, ...] = ()
    local_size: tuple[str, ...] = ()
    address: str = EXPORT
    """How to say where rank 0 is."""


def _uniform(name: str, prefix: str, address: str = EXPORT) -> Launcher:
    rank, size, local_rank, local_size = (f"{prefix}_{end}" for end in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE"))
    return Launcher(
        name=name, rank=rank, size=size, local_rank=(local_rank,), local_size=(local_size,), address=address
    )


SET_FOR_MPI = "MASTER_ADDR=HOST_OF_RANK_0 MASTER_PORT=29500, exported and passed on ({})"
KNOWN = (
    Launcher(
        name="torchrun or `python -m launch`",
        rank="RANK",
        size="WORLD_SIZE",
        local_rank=("LOCAL_RANK",),
        local_size=("LOCAL_WORLD_SIZE", "LOCAL_SIZE"),  # the second is DeepSpeed's
    ),
    Launcher(
        name=SRUN,
        rank="SLURM_PROCID",
        size="SLURM_STEP_NUM_TASKS",
        local_rank=("SLURM_LOCALID",),
        address='export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1) MASTER_PORT=29500',
    ),
    _uniform("mpirun (Open MPI)", "OMPI_COMM_WORLD", SET_FOR_MPI.format("-x MASTER_ADDR -x MASTER_PORT")),
    Launcher(
        name="mpiexec (MPICH, Intel MPI)",
        rank="PMI_RANK",
        size="PMI_SIZE",
        local_rank=("MPI_LOCALRANKID", "PMI_LOCAL_RANK"),
        local_size=("MPI_LOCALNRANKS", "PMI_LOCAL_SIZE"),
        address=SET_FOR_MPI.format("-genvlist MASTER_ADDR,MASTER_PORT"),
    ),
    _uniform("mpirun (MVAPICH)", "MV2_COMM_WORLD"),
    _uniform("jsrun", "JSM_NAMESPACE"),
    Launcher(name="flux run", rank="FLUX_TASK_RANK", size="FLUX_JOB_SIZE", local_rank=("FLUX_TASK_LOCAL_ID",)),
    _uniform("horovodrun", "HOROVOD"),
    Launcher(name="a launcher that speaks PMIx", rank="PMIX_RANK", size=""),
)


@dataclass(frozen=True, kw_only=True)
class StartedBy:
    """One process of several."""

    launcher: str
    rank: int
    size: int
    """0 where the launcher does not say."""
    local_rank: int | None = None
    local_size: int | None = None
    address: str = ""


@dataclass(frozen=True, kw_only=True)
class Place:
    """A process's place among the ranks; by default it is alone."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1


def started_by(environment: Mapping[str, str]) -> StartedBy | None:
    """Return the launcher that started this process together with others; None if it is alone, or nobody says. A batch
    script of Slurm is alone, however many tasks its job has: only what `srun` starts has a step's number."""
    known = [found for launcher in KNOWN if (found := _read(launcher, environment)) is not None]
    several = [found for found in known if found.size > 1]
    if not several and known and all(found.size == 0 for found in known):
        return known[0]
    return several[0] if several else None


def place_of(environment: Mapping[str, str]) -> Place:
    """Return this process's place. Raise ConfigError if it is one of several that cannot find each other, or variables
    are missing or contradict."""
    given = {name: environment[name] for name in (*NUMBERS, *ADDRESS) if environment.get(name, "") != ""}
    if "RANK" in given and environment.get("LOCAL_SIZE", "") != "":
        given.setdefault("LOCAL_WORLD_SIZE", environment["LOCAL_SIZE"])
    foreign = started_by({name: value for name, value in environment.items() if name not in NUMBERS})
    missing = [name for name in (*NUMBERS, *ADDRESS) if name not in given]
    if foreign is None and missing and _is_alone(given):
        return Place()
    if missing and foreign is not None:
        told = _told_by(foreign)
        if any(given.get(name, value) != value for name, value in told.items()):
            raise _mixed(given, foreign)
        given = {**told, **given}
        missing = [name for name in missing if name not in given]
    if missing:
        raise _incomplete(missing, given, foreign)
    return _parse(given)


def adopt_place(environment: MutableMapping[str, str]) -> Place:
    """Return this process's place, and set torchrun's variables, which libraries read, if another launcher gave it."""
    place = place_of(environment)
    if place.world_size > 1:
        for name in NUMBERS:
            environment.setdefault(name, str(getattr(place, name.lower())))
    return place


def _read(launcher: Launcher, environment: Mapping[str, str]) -> StartedBy | None:
    rank, size = _number(environment, launcher.rank), _number(environment, launcher.size)
    if launcher.name == SRUN:
        size = _srun_size(environment, rank, size)
    if rank is None and size is not None and size > 1 and launcher.name not in (SRUN, KNOWN[0].name):
        rank = 0  # of several, in any case; a shell inside an allocation of Slurm has a size, too
    if rank is None or (size is None and launcher.size):
        return None
    is_srun = launcher.name == SRUN
    return StartedBy(
        launcher=launcher.name,
        rank=rank,
        size=size or 0,
        local_rank=_first(environment, launcher.local_rank),
        local_size=_tasks_here(environment) if is_srun else _first(environment, launcher.local_size),
        address=launcher.address,
    )


def _srun_size(environment: Mapping[str, str], rank: int | None, size: int | None) -> int | None:
    step = _number(environment, "SLURM_STEP_ID")
    if step is not None and step >= NO_STEP:
        return 1
    if size is None and (step is not None or (rank or 0) > 0):
        return _number(environment, "SLURM_NTASKS")
    return size


def _tasks_here(environment: Mapping[str, str]) -> int | None:
    """How many tasks of the step run on this node: "2(x3),1" is 2, 2, 2 and 1."""
    node, sizes = _number(environment, "SLURM_NODEID"), []
    for part in environment.get("SLURM_STEP_TASKS_PER_NODE", "").split(","):
        size, _, times = part.partition("(x")
        if size.isdecimal():
            sizes += [int(size)] * int(times.rstrip(")") or 1)
    return sizes[node] if node is not None and node < len(sizes) else None


def _told_by(foreign: StartedBy) -> dict[str, str]:
    numbers = (foreign.rank, foreign.local_rank, foreign.size or None, foreign.local_size)
    return {name: str(number) for name, number in zip(NUMBERS, numbers, strict=True) if number is not None}


def _is_alone(given: Mapping[str, str]) -> bool:
    """An address alone (a job's script exports it for all its steps) makes no ranks, and a world of one needs none."""
    if not any(name in given for name in NUMBERS):
        return True
    return given.get("WORLD_SIZE") == "1" and all(given.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK"))


def _incomplete(missing: list[str], given: Mapping[str, str], foreign: StartedBy | None) -> ConfigError:
    needed = ", ".join((*NUMBERS, *ADDRESS))
    if foreign is None:
        do = "Start the run through a launcher (`python -m launch run --ranks N -- …`, torchrun), or unset them to run "
        do += "one process. With one process on each machine, LOCAL_RANK is 0 and LOCAL_WORLD_SIZE 1."
        return ConfigError(
            where="environment",
            expected=f"all or none of the variables {needed}",
            got=f"only {', '.join(given)} (missing: {', '.join(missing)})",
            do=do,
        )
    which = f"{foreign.rank} of {foreign.size}" if foreign.size else f"{foreign.rank} of a number that it does not tell"
    numbers = " ".join(f"{name}=…" for name in missing if name in NUMBERS)
    ours = "`python -m launch submit RECIPE` (it writes the job)" if foreign.launcher == SRUN else "torchrun"
    return ConfigError(
        where="environment",
        expected="one process, or ranks that find each other",
        got=f"process {which} that {foreign.launcher} started, without {', '.join(missing)}",
        do="On one machine, start one process: `python -m launch run --ranks N -- python -m pretrain …`. On several, "
        f"use {ours}, or say where rank 0 is before the start: {foreign.address}"
        + (f"; and in each process {numbers}." if numbers else "."),
    )


def _mixed(given: Mapping[str, str], foreign: StartedBy) -> ConfigError:
    return ConfigError(
        where="environment",
        expected=f"variables that agree with {foreign.launcher}: "
        + " ".join(f"{name}={value}" for name, value in _told_by(foreign).items()),
        got=" ".join(f"{name}={value}" for name, value in given.items() if name in NUMBERS),
        do="Unset those that a script or another launcher left.",
    )


def _parse(given: Mapping[str, str]) -> Place:
    found = [
        f"{name}={given[name]!r} is not an integer" for name in (*NUMBERS, "MASTER_PORT") if not _is_int(given[name])
    ]
    if not found:
        rank, local_rank, world, local_world = (int(given[name]) for name in NUMBERS)
        checks = {
            f"WORLD_SIZE={world}": world >= 1,
            f"LOCAL_WORLD_SIZE={local_world} with WORLD_SIZE={world}": 1 <= local_world <= world,
            f"RANK={rank} with WORLD_SIZE={world}": 0 <= rank < world,
            f"LOCAL_RANK={local_rank} with LOCAL_WORLD_SIZE={local_world}": 0 <= local_rank < local_world,
            f"LOCAL_RANK={local_rank} with RANK={rank}": local_rank <= rank,
            f"MASTER_PORT={given['MASTER_PORT']}": 0 < int(given["MASTER_PORT"]) < 65536,
        }
        found = [contradiction for contradiction, is_right in checks.items() if not is_right]
    if found:
        raise ConfigError(
            expected="0 ≤ LOCAL_RANK < LOCAL_WORLD_SIZE ≤ WORLD_SIZE, LOCAL_RANK ≤ RANK < WORLD_SIZE and a port",
            got="; ".join(found),
            do="Check the launcher: variables of two different launchers may be mixed.",
            where="environment",
        )
    return Place(rank=rank, local_rank=local_rank, world_size=world, local_world_size=local_world)


def _is_int(text: str) -> bool:
    return text.strip().removeprefix("-").isdecimal()


def _first(environment: Mapping[str, str], names: tuple[str, ...]) -> int | None:
    return next((number for name in names if (number := _number(environment, name)) is not None), None)


def _number(environment: Mapping[str, str], name: str) -> int | None:
    text = environment.get(name, "")
    return int(text) if text.isdecimal() else None
