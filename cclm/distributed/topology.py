"""Who am I among the processes of this run, by the variables that every launcher sets; the meeting of all; the store in
which they met, as the board of their watches; and what torch has recorded of collectives."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as torch_dist
from torch._C import _distributed_c10d as c10d
from torch.distributed import HashStore, PrefixStore, Store, TCPStore  # type: ignore[attr-defined]  # public, but not re-exported

from cclm.distributed.collectives import TIMEOUT_S
from cclm.errors import Cause, CclmError, ConfigError
from cclm.run.launcher import Place, place_of

Device = Literal["auto", "cpu", "cuda"]
SAY_S = 60.0
"""After so long rank 0 says for whom it waits; then after twice as long, and so on."""
MEET_POLL_S = 0.1
SHOWN = 16
"""So many missing ranks are named."""
ANSWER_S = 10.0
DUMPS = ("_dump_nccl_trace_json", "_dump_fr_trace_json")
"""Torch's flight recorder, by the names that its versions have: NCCL's collectives, and those of all backends."""


@dataclass(frozen=True, kw_only=True)
class Topology(Place):
    """This process's place in the run, and where it computes."""

    device: torch.device

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None, device: Device = "auto") -> Topology:
        """Read the launcher's variables (`cclm.run.launcher`), without any of one process; raise ConfigError with
        everything that is wrong."""
        place = place_of(os.environ if environment is None else environment)
        return cls(**vars(place), device=_choose_device(device, place.local_rank))


@contextmanager
def process_group(topology: Topology, timeout_s: float = TIMEOUT_S) -> Iterator[StoreBoard | None]:
    """Join the other ranks for the length of the `with` block (one process: a group of one, without network). Yields
    what their watches talk over; None with one process. Neither the meeting nor a collective waits longer than
    `timeout_s`; ranks that do not meet raise CclmError (cause TRANSIENT), which names those that have not come.
    DeepSpeed reads LOCAL_RANK at every step: a process that no launcher started has it in here."""
    backend, timeout = "gloo", timedelta(seconds=timeout_s)
    if topology.device.type == "cuda":
        torch.cuda.set_device(topology.device)
        backend = "cpu:gloo,cuda:nccl"  # tensors of the CPU are exchanged, too
    met = None if topology.world_size == 1 else meet(topology.rank, topology.world_size, timeout_s)
    store = HashStore() if met is None else met
    torch_dist.init_process_group(
        backend, store=store, rank=topology.rank, world_size=topology.world_size, timeout=timeout
    )
    if topology.world_size > 1:  # gloo: a rank that goes early takes down one that still connects to others
        torch_dist.all_reduce(torch.zeros(()))
    has_local_rank = "LOCAL_RANK" in os.environ
    os.environ.setdefault("LOCAL_RANK", str(topology.local_rank))
    try:
        yield None if met is None else StoreBoard(met, f"watch, {_attempt()}")
    except BaseException:
        if met is None:  # to say goodbye to others would wait for ranks that may stand in a collective
            torch_dist.destroy_process_group()
        raise
    else:
        torch_dist.destroy_process_group()
    finally:
        if not has_local_rank:
            del os.environ["LOCAL_RANK"]


def meet(rank: int, world_size: int, timeout_s: float) -> TCPStore:
    """Wait for the other ranks at MASTER_ADDR:MASTER_PORT, and return the store that they share. Not torch's own
    rendezvous, which says nothing while it waits, and not who is missing when it gives up."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    place, began, say_at_s = f"{address}:{port}", time.monotonic(), SAY_S
    has_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == str(True)  # torchrun serves the store itself
    try:
        store = TCPStore(
            address,
            port,
            world_size,
            is_master=rank == 0 and not has_agent,
            timeout=timedelta(seconds=timeout_s),
            wait_for_workers=False,
            multi_tenant=True,
        )
        met = PrefixStore(_attempt(), store)
        _come(met, rank, place)
        while not met.check(["all"]):
            waited_s = time.monotonic() - began
            missing = [rank]
            if rank == 0 or waited_s > timeout_s:
                missing = [other for other in range(world_size) if not met.check([str(other)])]
            if not missing:
                met.set("all", "")
            elif waited_s > timeout_s:
                raise _not_met(place, _named(missing, world_size), waited_s)
            elif waited_s > say_at_s and rank == 0:
                sys.stderr.write(f"waits at {place} for {_named(missing, world_size)}: {waited_s:.0f} s\n")
                say_at_s *= 2
            time.sleep(MEET_POLL_S if missing else 0.0)
    except torch_dist.DistError as error:
        got = " ".join(str(error).split())
        raise _not_met(place, f"rank 0 ({got})", time.monotonic() - began) from error
    return store


def _attempt() -> str:
    """torchrun's store outlives an attempt of the job."""
    return f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"


def _come(store: Store, rank: int, place: str) -> None:
    """Say that this rank is here, unless another process has its number: two jobs with the same port would mix."""
    mine = f"process {os.getpid()} on {socket.gethostname()}"
    found = store.compare_set(str(rank), "", mine).decode()
    if found != mine:
        raise CclmError(
            where=place,
            expected=f"one process with rank {rank}",
            got=f"this one and {found}: two jobs meet at the same port",
            do="Give each job a port of its own (`python -m launch run --port N`, torchrun --master-port N).",
        )


def _named(ranks: list[int], world_size: int) -> str:
    shown = ", ".join(map(str, ranks[:SHOWN])) + (" …" if len(ranks) > SHOWN else "")
    return f"{len(ranks)} of {world_size} ranks ({shown})"


def _not_met(place: str, missing: str, waited_s: float) -> CclmError:
    return CclmError(
        where=place,
        expected="every rank to come to the address of rank 0 (MASTER_ADDR, MASTER_PORT)",
        got=f"nothing of {missing} after {waited_s:.0f} s",
        do="Read the logs of the ranks that did not come; check that their hosts reach this address, and that nobody "
        "else uses the port (`python -m launch run --port N`).",
        cause=Cause.TRANSIENT,
    )


def _choose_device(device: Device, local_rank: int) -> torch.device:
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


class StoreBoard:
    """`cclm.run.talk.Board` over torch's store, by a connection of its own: torch's waits hold the other one."""

    def __init__(self, store: TCPStore, prefix: str) -> None:
        timeout = timedelta(seconds=ANSWER_S)
        own = TCPStore(store.host, store.port, is_master=False, timeout=timeout, wait_for_workers=False)
        self._store = PrefixStore(prefix, own)

    def put(self, name: str, text: str) -> None:
        """Let a text stand there."""
        with _gone():
            self._store.set(name, text)

    def claim(self, name: str, text: str) -> str:
        """Put it unless something stands there already; return what stands there."""
        with _gone():
            return self._store.compare_set(name, "", text).decode()

    def get(self, names: Sequence[str]) -> list[str]:
        """Return the texts; "" where nothing stands: to ask for that would wait."""
        with _gone():
            if self._store.check(list(names)):
                return [text.decode() for text in self._store.multi_get(list(names))]
            return [self._store.get(name).decode() if self._store.check([name]) else "" for name in names]


@contextmanager
def _gone() -> Iterator[None]:
    try:
        yield
    except torch_dist.DistError as error:
        raise ConnectionError(str(error)) from error


def write_recorded_collectives(path: Path) -> str:
    """Write what torch's flight recorder holds, where there is one; return the last collective in words, or "". A
    thread does it, for which nobody waits long: it may have to ask a GPU that does not answer."""
    last = list[str]()
    thread = threading.Thread(target=lambda: last.append(_write_recorded(path)), name="flight recorder", daemon=True)
    thread.start()
    thread.join(ANSWER_S / 2)
    return last[0] if last else ""


def _write_recorded(path: Path) -> str:
    found = {name: json.loads(dump(True, False)) for name in DUMPS if (dump := getattr(c10d, name, None)) is not None}
    entries: list[dict[str, Any]] = [entry for one in found.values() for entry in one.get("entries", [])]
    if not entries:
        return ""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found), encoding="utf-8")
    last = max(entries, key=lambda entry: entry.get("time_created_ns", 0))
    return f"{last.get('profiling_name')} {last.get('collective_seq_id')} of {'/'.join(last.get('process_group', []))}"
