"""What Slurm 22.05.8 said on the test cluster (`answers/`, one node set down, one job running), and how we read it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from launch.slurm import capabilities
from launch.slurm.capabilities import Cluster, Node, parse_cluster

ANSWERS = Path(__file__).parent / "answers"


def answer(name: str) -> str:
    return (ANSWERS / f"{name}.txt").read_text()


def real_cluster(**settings: str) -> Cluster:
    cluster = parse_cluster(answer("config"), answer("partitions"), answer("nodes"))
    return replace(cluster, settings={**cluster.settings, **settings})


def test_settings() -> None:
    cluster = real_cluster()
    assert cluster.setting("SLURM_VERSION") == "22.05.8"
    assert cluster.setting("SlurmctldParameters") == "preempt_send_user_signal"
    assert cluster.setting("SlurmctldHost[0]") == "login(10.77.0.254)"
    assert cluster.setting("Prolog") == "", "(null) is nothing"
    assert cluster.setting("NotInThisVersion") == ""
    assert [cluster.seconds(name) for name in ("KillWait", "MinJobAge", "NotInThisVersion")] == [5, 300, 0]


def test_partitions() -> None:
    train, preempt = real_cluster().partitions
    assert (train.name, train.is_default, train.is_up, train.max_time) == ("train", True, True, "UNLIMITED")
    assert (preempt.name, preempt.is_default, preempt.preempt_mode, preempt.grace_s) == (
        "preempt", False, "REQUEUE", 20,
    )  # fmt: skip
    assert train.accounts is None
    assert [node.name for node in train.nodes] == [node.name for node in preempt.nodes] == ["n1", "n2", "n3"]


def test_nodes() -> None:
    first, second, third = real_cluster().nodes
    assert first == Node(name="n1", state="mixed", cores=8, memory_mib=4000, gres="gpu:2", reason="")
    assert (second.state, third.state, third.reason) == ("idle", "down", "cable cut | n3")
    assert [node.is_usable for node in (first, second, third)] == [True, True, False]


def test_a_partition_for_some_accounts_of_another_site() -> None:
    line = "PartitionName=gpu AllowAccounts=red,blue Default=NO MaxTime=2-00:00:00 State=DOWN PreemptMode=GANG,SUSPEND"
    (partition,) = parse_cluster("", f"{line}\n\n", "").partitions
    assert (partition.accounts, partition.is_up, partition.nodes) == (("red", "blue"), False, ())
    assert (partition.max_time, partition.preempt_mode) == ("2-00:00:00", "GANG,SUSPEND")


@pytest.mark.parametrize(
    ("state", "plain", "usable"),
    [
        ("idle", "idle", True),
        ("idle~", "idle", True),
        ("allocated", "allocated", True),
        ("idle*", "idle", False),
        ("down*", "down", False),
        ("draining", "draining", False),
        ("drained$", "drained", False),
        ("mixed-", "mixed", True),
        ("inval", "inval", False),
    ],
)
def test_states_with_their_marks(state: str, plain: str, usable: bool) -> None:
    (node,) = parse_cluster("", "PartitionName=p", f"p|n1|{state}|8+|4000+|gpu:a100:8(S:0-1)|none\n").nodes
    assert (node.plain_state, node.is_usable) == (plain, usable)
    assert (node.cores, node.memory_mib, node.gres) == (8, 4000, "gpu:a100:8")


def test_who_preempts_whom() -> None:
    train, preempt = real_cluster().partitions
    assert real_cluster().preemptors(preempt) == ("train",)
    assert real_cluster().preemptors(train) == (), "it is of the highest tier"
    assert real_cluster(PreemptType="preempt/none").preemptors(preempt) == ()


def test_accounts_of_a_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "sacctmgr"
    program.write_text("#!/bin/bash\nprintf 'red\\nblue\\nred\\n'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert capabilities.my_accounts("me") == ("blue", "red")
    program.write_text("#!/bin/bash\nexit 1\n")
    assert capabilities.my_accounts("me") is None
