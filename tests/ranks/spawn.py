"""Run a function on N processes that form a gloo group, collect results and every rank's traceback, leave nothing.

    results = on_ranks(function, 2, argument, timeout_s=60)     # function(argument) on each rank

Children come from a fork server, which imports torch, DeepSpeed and what most tests need once: a rank starts in
milliseconds instead of seconds and inherits no threads. `function` must be importable (top level of a module) and its
result picklable.
"""

from __future__ import annotations

import faulthandler
import gc
import multiprocessing
import os
import pickle
import signal
import socket
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from cclm.run.machine import LOOPBACK
from cclm.run.signals import die_with_parent

GRACE_S = 30.0
"""After the first rank has failed, the others get this long to say something: closed connections end their waits."""
PRELOAD = (
    *("torch", "torch._dynamo", "deepspeed", "pytest", "cclm.engine.deepspeed.engine", "cclm.checkpoint.collective"),
    *("tests.ranks.toy", "tests.tiny_training"),
)
"""What the fork server imports before it forks, for all ranks of all tests: the first call of a process starts it."""
os.environ.setdefault("DS_ACCELERATOR", "cpu")


class RanksFailedError(RuntimeError):
    """At least one rank raised, died or hung; the message holds what each rank had to say."""


@dataclass
class _Rank:
    process: BaseProcess
    connection: Connection
    stack_file: Path
    outcome: str = ""
    """"ok", "raised", "died", "hung", or "" while it runs."""
    value: Any = None
    """The result, or the text of what went wrong."""


def on_ranks(function: Callable[..., Any], world_size: int, *arguments: Any, timeout_s: float = 300.0) -> list[Any]:
    """Call `function(*arguments)` on ranks 0 … world_size - 1 inside a gloo group; return the results by rank.

    Args:
        function: a module-level function; inside it torch.distributed is initialised and the launcher's environment
            variables are set.
        world_size: number of processes.
        arguments: picklable arguments, the same for every rank.
        timeout_s: after it all ranks still running are killed and their stacks reported.

    Raises RanksFailedError if any rank does not return. Children are always gone when this function ends.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*PRELOAD])
    keeper, port = keep_port()
    with keeper, tempfile.TemporaryDirectory(prefix="ranks_") as folder:
        ranks = []
        try:
            for rank in range(world_size):
                receiver, sender = context.Pipe(duplex=False)
                stack_file = Path(folder, f"stack_{rank}.txt")
                environment = _environment(rank, world_size, port)
                process = context.Process(
                    target=_rank_main,
                    args=(function, arguments, environment, timeout_s, sender, str(stack_file)),
                    daemon=True,
                )
                process.start()
                sender.close()
                ranks.append(_Rank(process, receiver, stack_file))
            _collect(ranks, time.monotonic() + timeout_s)
        finally:
            _reap(ranks)
    if any(rank.outcome != "ok" for rank in ranks):
        raise RanksFailedError(_report(function, ranks))
    return [rank.value for rank in ranks]


def keep_port() -> tuple[socket.socket, int]:
    """What keeps a port of the loopback interface while it is open, and its number: who names it can listen there."""
    keeper = socket.socket()
    keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # who listens sets it, too
    keeper.bind((LOOPBACK, 0))
    return keeper, int(keeper.getsockname()[1])


def _environment(rank: int, world_size: int, port: int) -> dict[str, str]:
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": LOOPBACK,
        "MASTER_PORT": str(port),
    }


def _rank_main(
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    environment: dict[str, str],
    timeout_s: float,
    sender: Connection,
    stack_file: str,
) -> None:
    die_with_parent(os.getppid())  # the fork server, which goes with the main process
    gc.freeze()  # DeepSpeed collects garbage often, and would look through all that was imported
    os.environ.update(environment)
    with Path(stack_file).open("w") as stacks:
        faulthandler.register(signal.SIGUSR1, file=stacks, all_threads=True)
        try:
            import torch

            from cclm.distributed.topology import Topology, process_group

            torch.set_num_threads(1)
            with process_group(Topology.from_environment(device="cpu"), timeout_s=timeout_s + 5.0):
                message = pickle.dumps(("ok", function(*arguments)))
        except BaseException:  # noqa: BLE001 - whatever it was, the parent raises it
            message = pickle.dumps(("raised", traceback.format_exc()))
        faulthandler.unregister(signal.SIGUSR1)
    sender.send_bytes(message)  # plain bytes: torch's own pickler would send handles that die with this process
    sender.close()


def _collect(ranks: list[_Rank], deadline: float) -> None:
    while pending := [rank for rank in ranks if not rank.outcome]:
        if any(rank.outcome in ("raised", "died") for rank in ranks):
            deadline = min(deadline, time.monotonic() + GRACE_S)
        ready = wait([rank.connection for rank in pending], timeout=max(0.0, deadline - time.monotonic()))
        if not ready and time.monotonic() >= deadline:
            _mark_hung(pending)
        for rank in pending:
            if rank.connection in ready:
                _receive(rank)


def _receive(rank: _Rank) -> None:
    try:
        rank.outcome, rank.value = pickle.loads(rank.connection.recv_bytes())
    except EOFError:
        rank.process.join(GRACE_S)
        rank.outcome, rank.value = "died", f"ended without a word, exit code {rank.process.exitcode}"


def _mark_hung(pending: list[_Rank]) -> None:
    for rank in pending:
        if rank.process.pid is not None and rank.process.is_alive():
            os.kill(rank.process.pid, signal.SIGUSR1)
    until = time.monotonic() + GRACE_S / 3
    for rank in pending:
        while "<module>" not in (stack := _stack(rank)) and time.monotonic() < until:  # the outermost comes last
            time.sleep(0.1)
        rank.outcome, rank.value = "hung", stack or "no stack could be had"


def _stack(rank: _Rank) -> str:
    return rank.stack_file.read_text() if rank.stack_file.exists() else ""


def _reap(ranks: list[_Rank]) -> None:
    for rank in ranks:
        if rank.outcome == "ok":
            rank.process.join(5.0)
        if rank.process.is_alive():
            rank.process.kill()
        rank.process.join()
        rank.connection.close()


def _report(function: Callable[..., Any], ranks: list[_Rank]) -> str:
    lines = [f"{function.__name__} on {len(ranks)} ranks: " + ", ".join(rank.outcome for rank in ranks)]
    for number, rank in enumerate(ranks):
        if rank.outcome != "ok":
            lines.append(f"--- rank {number} {rank.outcome} ---\n{rank.value}")
    return "\n".join(lines)
