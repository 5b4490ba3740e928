"""Who am I among the processes of this run? Read from the environment variables that every launcher sets."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as torch_dist
from torch.distributed import HashStore  # type: ignore[attr-defined]  # public, but not re-exported for type checkers

from cclm.errors import ConfigError

NUMBERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
"""The variables that must be integers."""
ADDRESS = ("MASTER_ADDR", "MASTER_PORT")
"""Where the ranks meet."""


@dataclass(frozen=True, kw_only=True)
class Topology:
    """This process's place in the run."""

    rank: int
    """0 … world_size - 1, unique in the run."""
    world_size: int
    """Number of processes of the run."""
    local_rank: int
    """0 … local_world_size - 1, unique on this machine; the index of its GPU."""
    local_world_size: int
    """Number of processes of the run on this machine."""
    device: torch.device
    """Where this process computes."""

    @property
    def backend(self) -> str:
        """torch.distributed's name for the transport: gloo for CPU tensors, NCCL beside it for CUDA tensors."""
        return "cpu:gloo,cuda:nccl" if self.device.type == "cuda" else "gloo"

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None, device: str = "auto") -> Topology:
        """Read RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT.

        None of them set means one process. `device` is "auto", "cpu" or "cuda". Raises ConfigError, with all
        complaints at once, when only some are set or they contradict each other.
        """
        values = dict(os.environ if environment is None else environment)
        if "LOCAL_WORLD_SIZE" not in values and "LOCAL_SIZE" in values:  # DeepSpeed's launcher has its own name
            values["LOCAL_WORLD_SIZE"] = values["LOCAL_SIZE"]
        numbers = _read_numbers(values)
        if numbers is None:
            numbers = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1}
        return cls(
            rank=numbers["RANK"],
            world_size=numbers["WORLD_SIZE"],
            local_rank=numbers["LOCAL_RANK"],
            local_world_size=numbers["LOCAL_WORLD_SIZE"],
            device=_choose_device(device, numbers["LOCAL_RANK"]),
        )


@contextmanager
def process_group(topology: Topology, timeout_s: float = 1800.0) -> Iterator[None]:
    """Join the other ranks for the length of the `with` block (one process: a group of one, without network).

    A collective that waits longer than `timeout_s` raises instead of hanging for ever. DeepSpeed reads LOCAL_RANK at
    every step: a process that no launcher started has it in here.
    """
    if topology.device.type == "cuda":
        torch.cuda.set_device(topology.device)
    timeout = timedelta(seconds=timeout_s)
    if topology.world_size == 1:
        torch_dist.init_process_group(topology.backend, store=HashStore(), rank=0, world_size=1, timeout=timeout)
    else:
        torch_dist.init_process_group(
            topology.backend, rank=topology.rank, world_size=topology.world_size, timeout=timeout
        )
    has_local_rank = "LOCAL_RANK" in os.environ
    os.environ.setdefault("LOCAL_RANK", str(topology.local_rank))
    try:
        yield
    finally:
        if not has_local_rank:
            del os.environ["LOCAL_RANK"]
        torch_dist.destroy_process_group()


def _read_numbers(values: Mapping[str, str]) -> dict[str, int] | None:
    present = [name for name in NUMBERS + ADDRESS if values.get(name, "") != ""]
    if not present:
        return None
    missing = [name for name in NUMBERS + ADDRESS if name not in present]
    if missing:
        raise ConfigError(
            expected="all or none of the variables " + ", ".join(NUMBERS + ADDRESS),
            got=f"only {', '.join(present)} (missing: {', '.join(missing)})",
            do="Start the run through a launcher (`python -m launch run`, torchrun), or unset them to run one process.",
            where="environment",
        )
    numbers: dict[str, int] = {}
    complaints = []
    for name in (*NUMBERS, "MASTER_PORT"):
        try:
            numbers[name] = int(values[name])
        except ValueError:
            complaints.append(f"{name}={values[name]!r} is not an integer")
    complaints = complaints or _contradictions(numbers)
    if complaints:
        raise ConfigError(
            expected="0 ≤ LOCAL_RANK < LOCAL_WORLD_SIZE ≤ WORLD_SIZE, LOCAL_RANK ≤ RANK < WORLD_SIZE and a port",
            got="; ".join(complaints),
            do="Check the launcher: variables of two different launchers may be mixed.",
            where="environment",
        )
    return numbers


def _contradictions(numbers: Mapping[str, int]) -> list[str]:
    rank, local_rank = numbers["RANK"], numbers["LOCAL_RANK"]
    world, local_world = numbers["WORLD_SIZE"], numbers["LOCAL_WORLD_SIZE"]
    checks = {
        f"WORLD_SIZE={world}": world >= 1,
        f"LOCAL_WORLD_SIZE={local_world} with WORLD_SIZE={world}": 1 <= local_world <= world,
        f"RANK={rank} with WORLD_SIZE={world}": 0 <= rank < world,
        f"LOCAL_RANK={local_rank} with LOCAL_WORLD_SIZE={local_world}": 0 <= local_rank < local_world,
        f"LOCAL_RANK={local_rank} with RANK={rank}": local_rank <= rank,
        f"MASTER_PORT={numbers['MASTER_PORT']}": 0 < numbers["MASTER_PORT"] < 65536,
    }
    return [complaint for complaint, is_right in checks.items() if not is_right]


def _choose_device(device: str, local_rank: int) -> torch.device:
    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(expected='device "auto", "cpu" or "cuda"', got=repr(device), do="Correct the device.")
    num_gpus = torch.cuda.device_count()
    if device == "cpu" or (device == "auto" and num_gpus == 0):
        return torch.device("cpu")
    if local_rank >= num_gpus:
        raise ConfigError(
            expected=f"a GPU with index {local_rank} (LOCAL_RANK)",
            got=f"{num_gpus} visible GPUs",
            do="Start one process per visible GPU, or choose device cpu.",
        )
    return torch.device("cuda", local_rank)
