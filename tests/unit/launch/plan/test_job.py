from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cclm.errors import ConfigError
from cclm.run.machine import Machine
from launch.plan import job
from launch.plan.job import JobPlan, make_plan
from launch.plan.network import Fabric

MACHINE = Machine(host="node", cores=(0, 1, 2, 3, 8, 9), quota_cores=None, num_gpus=0, free_port=4321)
REQUEST: dict[str, Any] = {
    "command": ("python", "-m", "pretrain", "--recipe", "a b"),
    "folder": Path("/checkout"),
    "run_folder": Path("/runs/a"),
    "num_ranks": 2,
}


def plan(machine: Machine = MACHINE, inherited: Mapping[str, str] = MappingProxyType({}), **changes: Any) -> JobPlan:
    asked = {**REQUEST, **changes}
    return make_plan(asked.pop("command"), machine, inherited, **asked)


def test_ranks_find_each_other() -> None:
    first, second = plan().ranks
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "4321"}
    assert shared.items() <= first.environment.items()
    assert {**first.environment, "RANK": "1", "LOCAL_RANK": "1"} == second.environment


def test_python_is_the_interpreter_that_plans() -> None:
    assert plan().ranks[1].command == (sys.executable, "-m", "pretrain", "--recipe", "a b")
    assert plan(command=("bash", "python")).ranks[0].command == ("bash", "python")


def test_rank_0_keeps_the_terminal_and_the_others_write_logs() -> None:
    job = plan(num_ranks=3)
    assert [rank.log for rank in job.ranks] == [None, Path("/runs/a/logs/rank_1.log"), Path("/runs/a/logs/rank_2.log")]


def test_each_rank_gets_its_own_cores_and_threads() -> None:
    job = plan()
    assert [rank.cores for rank in job.ranks] == [(0, 1, 2), (3, 8, 9)]
    assert job.threads_per_rank == 3
    assert job.ranks[0].environment["OMP_NUM_THREADS"] == "3"


def test_cores_that_are_left_over_belong_to_a_ranks_block() -> None:
    assert [rank.cores for rank in plan(threads_per_rank=1).ranks] == [(0, 1, 2), (3, 8, 9)]


@pytest.mark.parametrize(
    ("changes", "machine"),
    [
        ({"threads_per_rank": 4}, MACHINE),
        ({"num_ranks": 7}, MACHINE),
        ({"bind": False}, MACHINE),
        ({}, replace(MACHINE, quota_cores=2.0)),
    ],
    ids=["too many threads", "more ranks than cores", "not wanted", "container limit below the mask"],
)
def test_no_binding(changes: dict[str, Any], machine: Machine) -> None:
    assert {rank.cores for rank in plan(machine, **changes).ranks} == {()}


def test_more_ranks_than_cores_get_one_thread_each() -> None:
    assert plan(num_ranks=7).threads_per_rank == 1


@pytest.mark.parametrize(("gpus", "ranks"), [(0, 1), (1, 1), (4, 4)])
def test_one_rank_per_gpu_by_default(gpus: int, ranks: int) -> None:
    assert replace(MACHINE, num_gpus=gpus).usual_ranks == ranks


def test_the_callers_environment_wins_over_defaults_but_not_over_the_plan() -> None:
    environment = (
        plan(inherited={"GLOO_SOCKET_IFNAME": "eth0", "RANK": "7", "OMP_NUM_THREADS": "64"}).ranks[0].environment
    )
    assert "GLOO_SOCKET_IFNAME" not in environment
    assert environment["RANK"] == "0"
    assert environment["OMP_NUM_THREADS"] == "3"


def test_a_network_profile_is_in_the_plan_and_never_in_place_of_what_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    fabric = Fabric(kind="infiniband", interface="ib0", devices=("mlx5_0",), gbits=200.0)
    monkeypatch.setattr(job, "look", lambda kind: fabric)
    found = plan(network="infiniband", inherited={"NCCL_SOCKET_IFNAME": "ib1"})
    environment = found.ranks[1].environment
    assert (environment["GLOO_SOCKET_IFNAME"], environment["NCCL_IB_HCA"]) == ("ib0", "=mlx5_0")
    assert "NCCL_SOCKET_IFNAME" not in environment
    assert "network        infiniband (mlx5_0, 200 Gb/s)" in found.to_text()
    assert plan().network == () and plan().ranks[0].environment["GLOO_SOCKET_IFNAME"] == "lo"
    assert "GLOO_SOCKET_IFNAME" not in plan(network="none").ranks[0].environment


def test_deepspeed_is_told_about_the_cpu_only_without_gpus() -> None:
    assert plan().ranks[0].environment["DS_ACCELERATOR"] == "cpu"
    assert "DS_ACCELERATOR" not in plan(machine=replace(MACHINE, num_gpus=2)).ranks[0].environment


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"command": ()}, "expected a command after `--`, got none. For example: python -m launch run"),
        ({"num_ranks": 0}, "expected --ranks of at least 1, got 0. Ask for one or more."),
        ({"threads_per_rank": 0}, "expected --threads-per-rank of at least 1, got 0. Ask for one or more."),
    ],
)
def test_mistakes_are_told_as_sentences(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plan(**changes)
    assert str(caught.value).startswith(sentence)


def test_json_holds_the_whole_plan() -> None:
    content = json.loads(plan().to_json())
    assert content["master_port"] == 4321
    assert content["ranks"][1] == {
        "rank": 1,
        "command": [sys.executable, "-m", "pretrain", "--recipe", "a b"],
        "environment": dict(plan().ranks[1].environment),
        "cores": [3, 8, 9],
        "log": "/runs/a/logs/rank_1.log",
    }


def test_text_can_be_pasted_into_a_shell() -> None:
    lines = plan().to_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("rank 1"))
    words = shlex.split(lines[start + 1].removesuffix("\\")) + shlex.split(lines[start + 2])
    rank = plan().ranks[1]
    assert words == [*(f"{name}={value}" for name, value in rank.environment.items()), *rank.command]


@given(
    cores=st.sets(st.integers(0, 300), min_size=1, max_size=64),
    num_ranks=st.integers(1, 16),
    threads=st.none() | st.integers(1, 8),
)
def test_blocks_are_equal_disjoint_and_large_enough(cores: set[int], num_ranks: int, threads: int | None) -> None:
    machine = replace(MACHINE, cores=tuple(sorted(cores)))
    job = plan(machine, num_ranks=num_ranks, threads_per_rank=threads)
    used = [core for rank in job.ranks for core in rank.cores]
    assert len(used) == len(set(used))
    assert set(used) <= cores
    sizes = {len(rank.cores) for rank in job.ranks}
    assert len(sizes) == 1
    enough = len(cores) // num_ranks >= job.threads_per_rank
    assert (sizes.pop() >= job.threads_per_rank) is enough
