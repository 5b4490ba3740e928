from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cclm.distributed.collectives import SINGLE
from cclm.distributed.topology import Topology
from cclm.run.machine import MOST_WORKERS, CoreShare, RankCores, own_cores, share_cores
from cclm.train.build import choose_cores

NODE = RankCores(host="n1", mask=tuple(range(96)), quota=None, promised=None, task="")


def share(everyone: list[RankCores], rank: int = 0, *, has_gpu: bool = True, **environment: str) -> CoreShare:
    return share_cores(everyone, rank, has_gpu=has_gpu, environment=environment)


def test_ranks_that_share_a_mask_divide_it() -> None:
    assert share([NODE] * 8) == CoreShare(cores=12, threads=2, num_workers=10)


def test_ranks_that_are_bound_keep_their_own_block() -> None:
    bound = [replace(NODE, mask=tuple(range(12 * rank, 12 * rank + 12))) for rank in range(8)]
    assert share(bound, 3) == CoreShare(cores=12, threads=2, num_workers=10)


def test_ranks_of_other_machines_take_nothing() -> None:
    assert share([NODE] * 4 + [replace(NODE, host="n2")] * 8, 2).cores == 24
    assert share([NODE] * 4 + [replace(NODE, host="n2")] * 8, 7).cores == 12


@pytest.mark.parametrize("given", [{"promised": 6}, {"quota": 48.0}])
def test_slurm_and_the_container_may_give_less(given: dict[str, int]) -> None:
    assert share([replace(NODE, task=str(rank), **given) for rank in range(8)]).cores == 6  # type: ignore[arg-type]


def test_ranks_inside_of_one_task_share_what_it_was_given() -> None:
    """As torchrun starts them: a task for each node."""
    assert share([replace(NODE, promised=32, task="0")] * 4).cores == 8


@pytest.mark.parametrize(("cores", "expected"), [(1, (1, 0)), (2, (1, 1)), (4, (2, 2)), (64, (48, MOST_WORKERS))])
def test_a_gpu_rank_keeps_one_or_two_cores(cores: int, expected: tuple[int, int]) -> None:
    found = share([replace(NODE, mask=tuple(range(cores)))])
    assert (found.threads, found.num_workers) == expected


def test_a_cpu_rank_computes_on_all_its_cores() -> None:
    two = [replace(NODE, mask=(0, 1))] * 2
    assert share(two, has_gpu=False) == CoreShare(cores=1, threads=1, num_workers=0)
    assert share([NODE] * 2, has_gpu=False) == CoreShare(cores=48, threads=48, num_workers=0)


def test_more_ranks_than_cores_have_one_each() -> None:
    assert share([replace(NODE, mask=(0, 1))] * 4) == CoreShare(cores=1, threads=1, num_workers=0)


def test_the_environments_threads_win() -> None:
    assert share([NODE] * 8, OMP_NUM_THREADS="5,2").threads == 5
    assert share([NODE] * 8, OMP_NUM_THREADS="many").threads == 2


def test_what_this_process_may_use(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    found = own_cores({"SLURM_CPUS_PER_TASK": "3", "SLURM_PROCID": "5"}, tmp_path / "cpu.max")
    assert found.mask == tuple(sorted(os.sched_getaffinity(0)))
    assert (found.quota, found.promised, found.task) == (1.5, 3, "5")
    assert own_cores({}, tmp_path / "none").quota is None


def test_a_given_number_of_workers_wins_in_silence(capsys: pytest.CaptureFixture[str]) -> None:
    topology, threads = Topology.from_environment({}, device="cpu"), torch.get_num_threads()
    assert choose_cores(3, topology, SINGLE) == 3
    assert capsys.readouterr().err == ""
    assert choose_cores(None, topology, SINGLE) == 0
    assert "data.num_workers: " in capsys.readouterr().err
    assert torch.get_num_threads() == threads
