"""A whole job on one machine as a value: who runs what, with which environment. Made by a pure function, run elsewhere.

    what is asked for + Machine ── make_plan ──> JobPlan ──> text, JSON, or running processes (launch/local)

The plan holds everything that running it does, so printing it is the slow twin of running it.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from cclm.errors import ConfigError
from cclm.run.machine import LOOPBACK, Machine
from launch.plan.network import AUTO, PROFILES, look, settings_of
from launch.plan.network import LOOPBACK as LOOPBACK_INTERFACE


@dataclass(frozen=True, kw_only=True)
class RankPlan:
    """One process of the job."""

    rank: int
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
    host: str
    master_port: int
    threads_per_rank: int
    ranks: tuple[RankPlan, ...]
    network: tuple[str, ...] = ()
    """Which network profile was asked for, and why each of its variables is set."""

    def to_json(self) -> str:
        """Return the plan as indented JSON; paths become strings."""
        return json.dumps(asdict(self), indent=2, default=str)

    def to_text(self) -> str:
        """Return the plan for people; each rank's line can be pasted into a shell."""
        lines = [
            f"{len(self.ranks)} rank(s) × {self.threads_per_rank} thread(s) on {self.host}, in {self.folder}",
            f"meeting point  {LOOPBACK}:{self.master_port}",
            f"run folder     {self.run_folder}",
            *(f"network        {line}" for line in self.network),
        ]
        for rank in self.ranks:
            cores = ",".join(map(str, rank.cores)) or "not bound"
            lines += ["", f"rank {rank.rank}, cores {cores}, output: {rank.log or 'this terminal'}"]
            lines.append("  " + " ".join([*(f"{k}={shlex.quote(v)}" for k, v in rank.environment.items()), "\\"]))
            lines.append("  " + shlex.join(rank.command))
        return "\n".join(lines)


def make_plan(
    command: Sequence[str],
    machine: Machine,
    inherited: Mapping[str, str],
    *,
    folder: Path,
    run_folder: Path,
    num_ranks: int,
    threads_per_rank: int | None = None,
    port: int | None = None,
    bind: bool = True,
    network: str = AUTO,
) -> JobPlan:
    """Plan a job; raise ConfigError for an empty command and for counts below one. A first word "python" of the
    `command` means the interpreter that plans; what the caller's environment (`inherited`) sets wins over our defaults.
    Without `threads_per_rank` a rank gets its share of the usable cores. `bind`: give each rank its own cores, if there
    are enough. `network`: one of `NETWORKS`; "auto" is the loopback interface, all ranks being here."""
    _check(command, num_ranks, threads_per_rank)
    threads = threads_per_rank or max(machine.num_usable_cores // num_ranks, 1)
    fabric = look(kind=network) if network in PROFILES else None
    settings = {} if fabric is None else settings_of(fabric, network, inherited)
    master_port = port if port is not None else machine.free_port
    shared = {
        "WORLD_SIZE": str(num_ranks),
        "LOCAL_WORLD_SIZE": str(num_ranks),
        "MASTER_ADDR": LOOPBACK,
        "MASTER_PORT": str(master_port),
        "OMP_NUM_THREADS": str(threads),
        **{name: value for name, value in _defaults(machine.num_gpus, network).items() if name not in inherited},
        **{name: value for name, (value, _) in settings.items()},
    }
    words = (sys.executable, *command[1:]) if command[0] in ("python", "python3") else tuple(command)
    blocks = _core_blocks(machine, num_ranks, threads) if bind else [()] * num_ranks
    ranks = [
        RankPlan(
            rank=rank,
            command=words,
            environment={"RANK": str(rank), "LOCAL_RANK": str(rank), **shared},
            cores=cores,
            log=run_folder / "logs" / f"rank_{rank}.log" if rank else None,
        )
        for rank, cores in enumerate(blocks)
    ]
    return JobPlan(
        folder=folder, run_folder=run_folder, host=machine.host, master_port=master_port, threads_per_rank=threads,
        ranks=tuple(ranks),
        network=() if fabric is None else (str(fabric), *(f"  {name}: {why}" for name, (_, why) in settings.items())),
    )  # fmt: skip


def _check(command: Sequence[str], num_ranks: int, threads_per_rank: int | None) -> None:
    if not command:
        raise ConfigError(
            expected="a command after `--`", got="none",
            do="For example: python -m launch run --ranks 2 -- python -m pretrain --recipe demo",
        )  # fmt: skip
    for name, count in (("--ranks", num_ranks), ("--threads-per-rank", threads_per_rank)):
        if count is not None and count < 1:
            raise ConfigError(expected=f"{name} of at least 1", got=str(count), do="Ask for one or more.")


def _defaults(num_gpus: int, network: str) -> dict[str, str]:
    """What a rank needs unless somebody says otherwise."""
    # A log is only worth its last line, so nothing may wait in a buffer. And gloo otherwise looks up the host's own
    # name, which laptops and containers often cannot resolve; all ranks are here, so the loopback interface serves.
    sockets = {"GLOO_SOCKET_IFNAME": LOOPBACK_INTERFACE} if network == AUTO else {}
    device = {} if num_gpus else {"DS_ACCELERATOR": "cpu"}
    return {"PYTHONUNBUFFERED": "1", **sockets, **device}


def _core_blocks(machine: Machine, num_ranks: int, threads: int) -> list[tuple[int, ...]]:
    """Equal blocks of neighbouring cores; no binding if a rank's threads would not fit into its block."""
    size = len(machine.cores) // num_ranks
    if size < threads or machine.num_usable_cores < len(machine.cores):
        return [()] * num_ranks
    return [machine.cores[rank * size : (rank + 1) * size] for rank in range(num_ranks)]
