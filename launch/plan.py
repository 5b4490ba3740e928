"""A whole job as a value: who runs what, where, with which environment. Made by a pure function, carried out elsewhere.

    JobRequest + Machine ─────────── make_plan ──┐
    JobRequest + Share of each host ─ plan_hosts ─┴─> JobPlan ──> text, JSON, or a backend (local.py, ssh/carry.py)

The plan holds everything that a backend may do, so printing it is the slow twin of running it.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cclm.errors import ConfigError
from launch.machine import LOOPBACK, Machine


@dataclass(frozen=True, kw_only=True)
class JobRequest:
    """What a user asks for."""

    command: tuple[str, ...]
    """The program that every rank runs."""
    folder: Path
    """Working directory of every rank."""
    run_folder: Path
    """Folder of the run; the ranks' output goes to its `logs/`."""
    num_ranks: int | None = None
    """Number of processes of a machine; None: one per GPU, or one if there is none."""
    threads_per_rank: int | None = None
    """Compute threads of each process; None: the usable cores divided by the ranks."""
    port: int | None = None
    """Port at which the ranks meet; None: a free one."""
    python: str = sys.executable
    """What a first word "python" of the command means."""
    bind: bool = True
    """Give each rank its own cores, if there are enough."""


@dataclass(frozen=True, kw_only=True)
class RankPlan:
    """One process of the job."""

    rank: int
    local_rank: int
    host: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    """Variables set on top of the inherited environment."""
    cores: tuple[int, ...]
    """Cores that the process is bound to; empty: not bound."""
    log: Path | None
    """File that stdout and stderr are appended to; None: the terminal."""


@dataclass(frozen=True, kw_only=True)
class JobPlan:
    """The whole job."""

    folder: Path
    """Working directory of every rank."""
    run_folder: Path
    master_address: str
    master_port: int
    threads_per_rank: int
    ranks: tuple[RankPlan, ...]

    def to_json(self) -> str:
        """Return the plan as indented JSON; paths become strings."""
        return json.dumps(asdict(self), indent=2, default=str)

    @classmethod
    def from_json(cls, text: str) -> JobPlan:
        """Read what `to_json` wrote."""
        values: dict[str, Any] = json.loads(text)
        ranks = tuple(_read_rank(rank) for rank in values["ranks"])
        folders = {name: Path(values[name]) for name in ("folder", "run_folder")}
        return cls(**{**values, **folders, "ranks": ranks})

    def of_host(self, host: str) -> JobPlan:
        """The part of the plan that one host carries out."""
        return replace(self, ranks=tuple(rank for rank in self.ranks if rank.host == host))

    def to_text(self) -> str:
        """Return the plan for people; each rank's line can be pasted into a shell."""
        lines = [
            f"{len(self.ranks)} rank(s) × {self.threads_per_rank} thread(s), in {self.folder}",
            f"meeting point  {self.master_address}:{self.master_port}",
            f"run folder     {self.run_folder}",
        ]
        for rank in self.ranks:
            cores = ",".join(map(str, rank.cores)) or "not bound"
            lines += ["", f"rank {rank.rank} on {rank.host}, cores {cores}, output: {rank.log or 'this terminal'}"]
            lines.append("  " + " ".join([*(f"{k}={shlex.quote(v)}" for k, v in rank.environment.items()), "\\"]))
            lines.append("  " + shlex.join(rank.command))
        return "\n".join(lines)


def _read_rank(values: dict[str, Any]) -> RankPlan:
    tuples = {name: tuple(values[name]) for name in ("command", "cores")}
    log = None if values["log"] is None else Path(values["log"])
    return RankPlan(**{**values, **tuples, "log": log})


@dataclass(frozen=True, kw_only=True)
class Share:
    """What one machine does for a job."""

    host: str
    """Name by which the machine is reached."""
    machine: Machine
    num_ranks: int


def make_plan(request: JobRequest, machine: Machine, inherited: Mapping[str, str]) -> JobPlan:
    """Plan a job on one machine. `inherited` is the environment of the caller: what it sets wins over our defaults.

    Raises ConfigError for an empty command and for counts below one.
    """
    num_ranks = request.num_ranks if request.num_ranks is not None else max(machine.num_gpus, 1)
    # gloo otherwise looks up the host's own name, which laptops and containers often cannot resolve; all ranks are
    # here, so the loopback interface serves.
    defaults = {**_defaults(machine.num_gpus), "GLOO_SOCKET_IFNAME": "lo"}
    defaults = {name: value for name, value in defaults.items() if name not in inherited}
    plan = _plan(request, (Share(host=machine.host, machine=machine, num_ranks=num_ranks),), LOOPBACK, defaults)
    return replace(plan, ranks=(replace(plan.ranks[0], log=None), *plan.ranks[1:]))


def plan_hosts(
    request: JobRequest, shares: Sequence[Share], master_address: str, environment: Mapping[str, str]
) -> JobPlan:
    """Plan a job on several machines, ranks numbered from host to host; they meet on the first.

    `environment` is what every rank gets: it wins over our defaults. Raises ConfigError as `make_plan`.
    """
    num_gpus = max(share.machine.num_gpus for share in shares)
    return _plan(request, shares, master_address, {**_defaults(num_gpus), **environment})


def _check(request: JobRequest, num_ranks: int) -> None:
    if not request.command:
        raise ConfigError(
            expected="a command after `--`",
            got="none",
            do="For example: python -m launch run --ranks 2 -- python -m pretrain --recipe demo",
        )
    for name, count in (("--ranks", num_ranks), ("--threads-per-rank", request.threads_per_rank)):
        if count is not None and count < 1:
            raise ConfigError(expected=f"{name} of at least 1", got=str(count), do="Ask for one or more.")


def _plan(request: JobRequest, shares: Sequence[Share], address: str, variables: Mapping[str, str]) -> JobPlan:
    for share in shares:
        _check(request, share.num_ranks)
    # Equal work wants equal threads: as many as the smallest share allows.
    fitting = [max(share.machine.num_usable_cores // share.num_ranks, 1) for share in shares]
    threads = request.threads_per_rank or min(fitting)
    port = request.port if request.port is not None else shares[0].machine.free_port
    shared = {
        "WORLD_SIZE": str(sum(share.num_ranks for share in shares)),
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": str(threads),
        **variables,
    }
    ranks: list[RankPlan] = []
    for share in shares:
        ranks += _ranks_of(share, request, len(ranks), threads, shared)
    return JobPlan(
        folder=request.folder,
        run_folder=request.run_folder,
        master_address=address,
        master_port=port,
        threads_per_rank=threads,
        ranks=tuple(ranks),
    )


def _ranks_of(
    share: Share, request: JobRequest, first_rank: int, threads: int, shared: Mapping[str, str]
) -> Iterator[RankPlan]:
    blocks = _core_blocks(share.machine, share.num_ranks, threads) if request.bind else [()] * share.num_ranks
    python_first = request.command[0] in ("python", "python3")
    for local_rank, cores in enumerate(blocks):
        rank = first_rank + local_rank
        place = {
            "RANK": str(rank),
            "LOCAL_RANK": str(local_rank),
            "LOCAL_WORLD_SIZE": str(share.num_ranks),
        }
        yield RankPlan(
            rank=rank,
            local_rank=local_rank,
            host=share.host,
            command=(request.python, *request.command[1:]) if python_first else request.command,
            environment={**place, **shared},
            cores=cores,
            log=request.run_folder / "logs" / f"rank_{rank}.log",
        )


def _defaults(num_gpus: int) -> dict[str, str]:
    """What a rank needs unless somebody says otherwise."""
    # A log is only worth its last line, so nothing may wait in a buffer.
    defaults = {"PYTHONUNBUFFERED": "1"}
    return defaults if num_gpus else {**defaults, "DS_ACCELERATOR": "cpu"}


def _core_blocks(machine: Machine, num_ranks: int, threads: int) -> list[tuple[int, ...]]:
    """Equal blocks of neighbouring cores; no binding if a rank's threads would not fit into its block."""
    size = len(machine.cores) // num_ranks
    if size < threads or machine.num_usable_cores < len(machine.cores):
        return [()] * num_ranks
    return [machine.cores[rank * size : (rank + 1) * size] for rank in range(num_ranks)]
