from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch.distributed as torch_dist
from torch.distributed import HashStore

from cclm.distributed.collectives import collectives
from cclm.distributed.topology import Topology, process_group
from cclm.files.atomic import replace_text
from cclm.run.machine import LOOPBACK, why_port_is_taken
from tests.ranks import spawn
from tests.ranks.harness import on_ranks
from tests.ranks.spawn import RanksFailedError, keep_port


def _identify(word: str) -> tuple[str, int, str, str]:
    return word, collectives().rank, os.environ["LOCAL_RANK"], os.environ["WORLD_SIZE"]


def test_results_come_in_rank_order() -> None:
    assert on_ranks(_identify, 3, "hi") == [("hi", 0, "0", "3"), ("hi", 1, "1", "3"), ("hi", 2, "2", "3")]


def _connect_late(folder: Path, port: int) -> int:
    """Make a second group, for which rank 1 takes its time; how many were through when this rank came in."""
    rank, connect = collectives().rank, torch_dist.init_process_group
    torch_dist.destroy_process_group()
    os.environ["MASTER_PORT"] = str(port)

    def connect_late(*arguments: Any, **options: Any) -> None:
        connect(*arguments, **options)
        time.sleep(1.0 if rank == 1 else 0.0)
        (folder / str(rank)).touch()

    with (
        patch.object(torch_dist, "init_process_group", connect_late),
        process_group(Topology.from_environment(device="cpu")),
    ):
        found = len(list(folder.iterdir()))
        collectives().barrier()
    connect("gloo", store=HashStore(), rank=0, world_size=1)  # what `on_ranks` says goodbye to
    return found


def test_no_rank_goes_on_while_another_connects(tmp_path: Path) -> None:
    """One that leaves at once would close connections of one that still waits for its other ones."""
    keeper, port = keep_port()
    with keeper:
        assert on_ranks(_connect_late, 3, tmp_path, port) == [3, 3, 3]


def test_a_kept_port_is_for_those_who_name_it() -> None:
    keeper, port = keep_port()
    with keeper:
        with pytest.raises(OSError, match="in use"), socket.socket() as other:
            other.bind((LOOPBACK, port))
        assert why_port_is_taken(port) == ""


def _fail_together() -> None:
    collectives().barrier()  # a rank that is gone before the other has met it would leave that one another error
    raise ValueError(f"told by {collectives().rank}")


def test_tracebacks_of_every_rank_are_told() -> None:
    with pytest.raises(RanksFailedError) as caught:
        on_ranks(_fail_together, 2)
    text = str(caught.value)
    assert text.startswith("_fail_together on 2 ranks: raised, raised")
    assert "ValueError: told by 0" in text
    assert "ValueError: told by 1" in text


def _hang(folder: Path) -> None:
    replace_text(folder / str(collectives().rank), str(os.getpid()))
    if collectives().rank == 1:
        time.sleep(600)
    collectives().barrier()


@pytest.mark.slow
def test_a_hang_ends_with_stacks_and_no_process_left(tmp_path: Path) -> None:
    before, collect = multiprocessing.active_children(), spawn._collect

    def collect_once_both_are_there(ranks: list[Any], deadline: float) -> None:
        while len([*tmp_path.glob("[01]")]) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        collect(ranks, time.monotonic() + 4.0)

    with (
        patch.object(spawn, "_collect", collect_once_both_are_there),
        pytest.raises(RanksFailedError) as caught,
    ):
        on_ranks(_hang, 2, tmp_path)
    text = str(caught.value)
    assert text.startswith("_hang on 2 ranks: hung, hung")
    assert "in barrier" in text  # rank 0 waits there
    assert "test_spawn.py" in text
    for rank in (0, 1):
        with pytest.raises(ProcessLookupError):
            os.kill(int((tmp_path / str(rank)).read_text()), 0)
    assert set(multiprocessing.active_children()) <= set(before)


def _die() -> str:
    if collectives().rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    collectives().barrier()
    return "never"


def test_a_killed_rank_is_told_with_its_signal() -> None:
    with pytest.raises(
        RanksFailedError, match=r"(?s)raised, died.*rank 1 died ---\nended without a word, exit code -9"
    ):
        on_ranks(_die, 2)


def _return_a_lambda() -> object:
    return lambda: 0


def test_a_result_that_cannot_travel_is_an_error_not_a_hang() -> None:
    with pytest.raises(RanksFailedError, match="pickle"):
        on_ranks(_return_a_lambda, 1)
