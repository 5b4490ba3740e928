from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from launch.plan.request import Profile
from launch.plan.slurm_job import plan_job, read_plan
from launch.plan.snapshot import HASH_NAME
from launch.slurm import node_health, preflight
from launch.slurm.history import attempts_since_submission, read_history
from tests.unit.launch.slurm.run_folders import begun, make_run, write_plan
from tests.unit.launch.slurm.scripts import REQUEST

GPU = {
    "name": "H100", "memory.total": "81559", "memory.free": "81000", "clocks.sm": "1980", "clocks.max.sm": "1980",
    "clocks_throttle_reasons.active": "0x0000000000000000",
}  # fmt: skip


def told(**changes: Any) -> dict[str, Any]:
    disk = {"bytes_per_s": 1e9, "free_bytes": 10**12, "skew_s": 0.0}
    usual = {
        "host": "n1", "python": "3.11.7", "cores": 8, "memory_free_bytes": 10**11, "gpus": [GPU, GPU],
        "run_disk": disk, "scratch_disk": disk, "unreadable": [], "code_hash": "abc",
    }  # fmt: skip
    return {**usual, **changes}


PLAN = plan_job(replace(REQUEST, gpus_per_node=2), Profile(scratch="/scratch"))


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"gpus": [GPU]}, "1 of 2 GPU(s)"),
        ({"gpus": "nvidia-smi: timed out"}, "nvidia-smi: timed out"),
        ({"gpus": [GPU, {**GPU, "memory.free": "2000"}]}, "GPU 1: 2000 of 81559 MiB free: another process is on it"),
        (
            {"gpus": [{**GPU, "clocks_throttle_reasons.active": "0x0000000000000048", "clocks.sm": "345"}, GPU]},
            "GPU 0: slowed down by its hardware (clock 345 of 1980 MHz)",
        ),
        ({"memory_free_bytes": 2**29}, "0.5 GiB of memory free"),
        ({"run_disk": {"error": "/runs: Read-only file system"}}, "cannot write into /runs: Read-only file system"),
        ({"run_disk": {"bytes_per_s": 1e9, "free_bytes": 1, "skew_s": -300.0}}, "its clock is -300 s away"),
        ({"scratch_disk": {"bytes_per_s": 1.0, "free_bytes": 2**20, "skew_s": 0.0}}, "1 MiB free in /scratch"),
        ({"unreadable": ["/data/images: Stale file handle"]}, "cannot read /data/images: Stale file handle"),
        ({"code_hash": "def"}, "code def, submitted was abc"),
        ({"python": "3.9.2"}, "Python 3.9.2, others have 3.11.7"),
        ({"gpus": [GPU, {**GPU, "name": "A100"}]}, "GPUs H100, A100, others have H100, H100"),
        ({"run_disk": {"bytes_per_s": 1e6, "free_bytes": 10**12, "skew_s": 0.0}}, "writes 1 MB/s"),
    ],
)
def test_a_bad_node_is_named_with_its_fault(changes: dict[str, Any], fault: str) -> None:
    found = {"n1": told(), "n2": told(**changes), "n3": told()}
    faults = node_health.find_faults(PLAN, ["n1", "n2", "n3"], found, "abc")
    assert list(faults) == ["n2"]
    assert fault in "; ".join(faults["n2"])


def test_a_silent_node_is_named_and_good_ones_are_not() -> None:
    assert node_health.find_faults(PLAN, ["n1", "n2"], {"n1": told()}, "abc") == {"n2": ["does not answer"]}
    assert node_health.find_faults(PLAN, ["n1", "n2"], {"n1": told(), "n2": told()}, "abc") == {}


def test_two_nodes_that_differ_cannot_be_judged_by_majority() -> None:
    found = {"n1": told(), "n2": told(python="3.9.2")}
    assert node_health.find_faults(PLAN, ["n1", "n2"], found, "abc") == {}


def test_code_is_compared_with_what_was_submitted_not_with_the_neighbours() -> None:
    found = {"n1": told(code_hash="def"), "n2": told(code_hash="def")}
    assert list(node_health.find_faults(PLAN, ["n1", "n2"], found, "abc")) == ["n1", "n2"]


def test_a_slow_cable_is_told_from_its_partners() -> None:
    pairs = [("n1", "n2", 1e9), ("n3", "n4", 1e8), ("n1", "n3", 1e9), ("n2", "n4", 1e8), ("n1", "n4", 1e8)]
    assert list(node_health.slow_nodes(pairs)) == ["n4"]
    assert node_health.slow_nodes([("n1", "n2", 1e3)]) == {}, "of two, nobody can say which"


def check(run: Path, answers: list[tuple[str, ...]]) -> tuple[int, str]:
    lines: list[str] = []

    def resubmit(folder: Path, *options: str) -> int:
        answers.append(options)
        return 0

    code = node_health.check_nodes(run, read_plan(run), "7", say=lines.append, resubmit=resubmit)
    return code, "\n".join(lines)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Attempt 0 on n1 and n2; n2 cannot read the shards."""
    monkeypatch.setattr(node_health, "expand", lambda nodes: nodes.split(","))
    run = make_run(tmp_path)
    (run / HASH_NAME).write_text("abc\n")
    begun(run, 0, nodes="n1,n2")
    folder = run / "slurm/preflight/0"
    folder.mkdir(parents=True)
    (folder / "n1.json").write_text(json.dumps(told()))
    (folder / "n2.json").write_text(json.dumps(told(unreadable=["/data: gone"])))
    return run


def test_a_bad_node_ends_the_job(run: Path) -> None:
    code, said = check(run, [])
    assert code == 1
    assert "unhealthy: n2: cannot read /data: gone" in said
    assert attempts_since_submission(read_history(run))[0].exit_status == "bad nodes"


def test_a_bad_node_is_replaced_where_asked_for(run: Path) -> None:
    write_plan(run, replace_bad_nodes=True, exclude="n9")
    answers: list[tuple[str, ...]] = []
    assert check(run, answers)[0] == 1, "this job ends; another goes on"
    assert answers == [("--exclude=n9,n2",)]
    for _ in range(10):
        check(run, answers)
    assert len(answers) == node_health.MOST_REPLACEMENTS


def test_ranks_that_cannot_talk_are_a_fault_of_no_node(run: Path) -> None:
    (run / "slurm/preflight/0/n2.json").write_text(json.dumps(told()))
    assert check(run, [])[0] == 0
    write_plan(run, preflight="full", replace_bad_nodes=True)
    code, said = check(run, [])
    assert code == 1
    assert "could not reach each other" in said


def test_a_snapshot_without_its_hash_is_a_fault_of_no_node(run: Path) -> None:
    write_plan(run, replace_bad_nodes=True)
    (run / HASH_NAME).unlink()
    code, said = check(run, [])
    assert code == 1
    assert "there is no code.sha256 to compare the nodes' code with: submit with --new-code" in said
    assert "not submitted again: no node can be blamed" in said
    assert attempts_since_submission(read_history(run))[0].exit_status == "bad nodes"


def test_this_machine_looks_at_itself(tmp_path: Path) -> None:
    run = make_run(tmp_path, reads=(str(tmp_path), str(tmp_path / "absent")), scratch=str(tmp_path / "nowhere"))
    (run / "code").mkdir()
    found = preflight.look(run)
    assert found["run_disk"]["bytes_per_s"] > 0
    assert abs(found["run_disk"]["skew_s"]) < 1.0
    assert found["scratch_disk"] == {"error": f"{tmp_path / 'nowhere'}: No such file or directory"}
    assert found["unreadable"] == [f"{tmp_path / 'absent'}: No such file or directory"]
    assert not list(run.glob(".preflight*"))


def test_the_fabrics_of_nodes_are_counted() -> None:
    fast, slow = told(network="infiniband (mlx5_0, 200 Gb/s)"), told(network="ethernet (eth0)")
    found = node_health.networks({"n1": slow, "n2": fast, "n3": fast, "n4": told()})
    assert found == ["infiniband (mlx5_0, 200 Gb/s) on 2 node(s)", "ethernet (eth0) on 1 node(s)"]
