from __future__ import annotations

import socket
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cclm.distributed import topology as topology_module
from cclm.distributed.topology import Topology
from cclm.errors import Cause, CclmError, ConfigError
from tests.ranks.spawn import keep_port

GOOD = {
    "RANK": "3",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "4",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "node0",
    "MASTER_PORT": "29500",
}


def test_nothing_set_is_one_process() -> None:
    topology = Topology.from_environment({"PATH": "/bin", "RANK": ""}, device="cpu")
    assert (topology.rank, topology.world_size, topology.local_rank, topology.local_world_size) == (0, 1, 0, 1)
    assert topology.device == torch.device("cpu")


def test_a_launchers_variables_are_read() -> None:
    topology = Topology.from_environment(GOOD, device="cpu")
    assert (topology.rank, topology.world_size, topology.local_rank, topology.local_world_size) == (3, 4, 1, 2)
    local_size = {"LOCAL_SIZE": GOOD["LOCAL_WORLD_SIZE"]}
    deepspeed = {name: value for name, value in GOOD.items() if name != "LOCAL_WORLD_SIZE"} | local_size
    assert Topology.from_environment(deepspeed, device="cpu") == topology


@pytest.mark.parametrize("missing", list(GOOD))
def test_a_partial_set_names_what_is_missing(missing: str) -> None:
    with pytest.raises(ConfigError, match=rf"missing: {missing}\).*through a launcher"):
        Topology.from_environment({name: value for name, value in GOOD.items() if name != missing})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"RANK": "4"}, "RANK=4 with WORLD_SIZE=4"),
        ({"RANK": "-1"}, "RANK=-1 with WORLD_SIZE=4"),
        ({"RANK": "two"}, "RANK='two' is not an integer"),
        ({"LOCAL_RANK": "2"}, "LOCAL_RANK=2 with LOCAL_WORLD_SIZE=2"),
        ({"RANK": "0"}, "LOCAL_RANK=1 with RANK=0"),
        ({"LOCAL_WORLD_SIZE": "8"}, "LOCAL_WORLD_SIZE=8 with WORLD_SIZE=4"),
        ({"MASTER_PORT": "70000"}, "MASTER_PORT=70000"),
        ({"WORLD_SIZE": "0", "LOCAL_RANK": "5"}, "LOCAL_RANK=5 with LOCAL_WORLD_SIZE=2"),
    ],
)
def test_contradictions_are_told(change: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Topology.from_environment(GOOD | change, device="cpu")


def test_devices() -> None:
    if not torch.cuda.is_available():
        assert Topology.from_environment({}).device.type == "cpu"
        with pytest.raises(ConfigError, match="a GPU with index 0"):
            Topology.from_environment({}, device="cuda")


def meet_in_threads(numbers: list[int], world_size: int, timeout_s: float) -> list[object]:
    """Let some ranks come to one port; returns what each of them got."""
    results: list[object] = [None] * len(numbers)

    def come(index: int) -> None:
        try:
            results[index] = topology_module.meet(numbers[index], world_size, timeout_s)
        except CclmError as error:
            results[index] = error

    threads = [threading.Thread(target=come, args=(index,)) for index in range(len(numbers))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    keeper, number = keep_port()
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(number))
    with keeper:
        yield number


def test_ranks_meet(port: int) -> None:
    stores = meet_in_threads([0, 1, 2], 3, 60.0)
    assert not any(isinstance(store, CclmError) for store in stores), stores


@pytest.mark.slow
def test_ranks_that_do_not_come_are_named(
    port: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both come, and then time runs: ten seconds between two looks at the clock."""
    come, both, now = topology_module._come, threading.Barrier(2), defaultdict[int, Iterator[int]](lambda: count(0, 10))

    def come_together(*arguments: Any) -> None:
        come(*arguments)
        both.wait(60)

    clock = SimpleNamespace(monotonic=lambda: next(now[threading.get_ident()]), sleep=time.sleep)
    monkeypatch.setattr(topology_module, "time", clock)
    monkeypatch.setattr(topology_module, "_come", come_together)
    monkeypatch.setattr(topology_module, "SAY_S", 15.0)
    first, second = meet_in_threads([0, 2], 4, 100.0)
    assert isinstance(first, CclmError) and isinstance(second, CclmError)
    assert first.cause is second.cause is Cause.TRANSIENT
    assert "2 of 4 ranks (1, 3)" in first.got
    assert f"waits at 127.0.0.1:{port} for 2 of 4 ranks (1, 3)" in capsys.readouterr().err


@pytest.mark.slow
def test_a_missing_rank_0_is_told(port: int) -> None:
    [error] = meet_in_threads([1], 2, 1.5)
    assert isinstance(error, CclmError)
    assert "nothing of rank 0" in error.got


def test_a_port_that_somebody_else_uses_is_told(port: int) -> None:
    with socket.create_server(("127.0.0.1", port)):
        [error] = meet_in_threads([0], 2, 1.5)
    assert isinstance(error, CclmError)
    assert "EADDRINUSE" in error.got and "--port" in error.do


def test_two_jobs_at_one_port_are_refused(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    host = topology_module.TCPStore("127.0.0.1", port, 2, is_master=True, wait_for_workers=False, multi_tenant=True)
    host.set("attempt 0/1", "process 7 on another host")
    [error] = meet_in_threads([1], 2, 60.0)
    assert isinstance(error, CclmError)
    assert "process 7 on another host" in error.got
