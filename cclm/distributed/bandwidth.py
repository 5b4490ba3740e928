"""How fast are the connections between the machines of a job?

Run before training, one process per rank. The variable CCLM_ATTEMPT is the number of the job's attempt, which `launch`
gives; TIMEOUT_S is the time that ranks wait for each other: most of it goes by while all of them import torch.

    python -m cclm.distributed.bandwidth RUN/slurm TIMEOUT_S     ──► RUN/slurm/preflight/ATTEMPT/bandwidth.json

All ranks add up one tensor, then machines exchange in pairs, so that a slow one can be told from its partners.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import torch
import torch.distributed as torch_dist

from cclm.distributed.collectives import collectives
from cclm.distributed.topology import Topology, process_group
from cclm.files.atomic import replace_text

NUM_REPEATS = 3
MAX_ROUNDS = 3
"""Rounds of pairs; a bad machine spoils its partner's figure of one round only."""


def pairs_of(count: int) -> Iterator[list[tuple[int, int]]]:
    """Rounds of a tournament of `count` players, each pair once: the circle method. An odd player pauses."""
    players: list[int | None] = [*range(count), *([None] if count % 2 else [])]
    for _ in range(len(players) - 1):
        half = len(players) // 2
        opposite = zip(players[:half], reversed(players[half:]), strict=True)
        yield [(first, second) for first, second in opposite if first is not None and second is not None]
        players = [players[0], players[-1], *players[1:-1]]


def all_reduce_bytes_per_s(x: torch.Tensor, device: torch.device) -> float:
    """Bytes that each rank sends a second while all add up `x` (ring: 2 (n − 1) / n of its size)."""
    ranks, seconds = torch_dist.get_world_size(), []
    for _ in range(NUM_REPEATS + 1):
        torch_dist.barrier()
        began = time.perf_counter()
        torch_dist.all_reduce(x)
        _wait(device)
        seconds.append(time.perf_counter() - began)
    return 2 * (ranks - 1) / ranks * x.nbytes / min(seconds[1:])


def exchange_bytes_per_s(x: torch.Tensor, partner: int, is_first: bool, device: torch.device) -> float:
    """Bytes a second from here to a partner and back."""
    seconds = []
    for _ in range(NUM_REPEATS):
        began = time.perf_counter()
        for is_mine in (is_first, not is_first):
            pass_on = torch_dist.send if is_mine else torch_dist.recv
            pass_on(x, partner)
        _wait(device)
        seconds.append(time.perf_counter() - began)
    return 2 * x.nbytes / min(seconds)


def measure(topology: Topology, node: str) -> dict[str, object]:
    """Measure; every rank returns the same."""
    ranks, device = collectives(), topology.device
    x = torch.zeros((64 if device.type == "cuda" else 4) * 2**18, device=device)
    total = all_reduce_bytes_per_s(x, device)
    names = ranks.exchange(node)
    leaders = leaders_of(names)
    mine: list[tuple[str, str, float]] = []
    for pairs in islice(pairs_of(len(leaders)), MAX_ROUNDS):
        ranks.barrier()
        for first, second in ((leaders[a], leaders[b]) for a, b in pairs):
            if topology.rank == first:
                mine.append((names[first], names[second], exchange_bytes_per_s(x, second, True, device)))
            elif topology.rank == second:
                exchange_bytes_per_s(x, first, False, device)
    found = [pair for part in ranks.exchange(mine) for pair in part]
    return {"world_size": topology.world_size, "bytes_per_s": total, "pairs": found, "device": device.type}


def leaders_of(names: Sequence[str]) -> list[int]:
    """The first rank of each machine, in rank order."""
    return [rank for rank, name in enumerate(names) if name not in names[:rank]]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main(arguments: Sequence[str]) -> int:
    """Measure, and write the file on rank 0."""
    topology = Topology.from_environment()
    with process_group(topology, timeout_s=float(arguments[1])):
        found = measure(topology, os.environ.get("SLURMD_NODENAME", os.uname().nodename))
    if topology.rank == 0:
        path = Path(arguments[0]) / "preflight" / os.environ["CCLM_ATTEMPT"] / "bandwidth.json"
        replace_text(path, json.dumps(found) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
