from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from launch.plan.request import Profile
from launch.slurm import capabilities
from launch.slurm.capabilities import Cluster
from launch.watch import doctor
from launch.watch.doctor import (
    Diagnostic,
    describe,
    diagnose_accounting,
    diagnose_folder,
    diagnose_slurm,
    problems,
)
from tests.unit.launch.slurm.test_capabilities import answer, real_cluster


def healthy(**settings: str) -> Cluster:
    """The test cluster without what a report finds there."""
    cluster = real_cluster(KillWait="600 sec", **settings)
    nodes = tuple(replace(node, state="idle", reason="") for node in cluster.nodes)
    return replace(cluster, partitions=tuple(replace(item, nodes=nodes, grace_s=600) for item in cluster.partitions))


def with_second(cluster: Cluster, **changes: Any) -> Cluster:
    first, second = cluster.partitions
    return replace(cluster, partitions=(first, replace(second, **changes)))


def warned(cluster: Cluster, profile: Profile | None = None) -> list[str]:
    findings = list(problems(cluster, profile or Profile(), 300))
    return [f"{item.subject}: {item.text}" for item in findings if item.level == "warn"]


def test_what_there_is() -> None:
    lines = [(item.subject, item.text) for item in describe(real_cluster())]
    assert lines[0] == ("Slurm", "22.05.8, cluster ci, 3 node(s); arrays of up to 1001 tasks")
    has = "3 node(s): 1 mixed, 1 idle, 1 down; each × 8 core(s), 4 GiB, gpu:2; time limit unlimited"
    assert lines[1:] == [
        ("partition train*", f"{has}; preemption off"),
        ("partition preempt", f"{has}; preemption requeue"),
    ]


def test_several_kinds_of_nodes_are_counted() -> None:
    cluster = healthy()
    first, second, third = cluster.nodes
    (_, line, _) = describe(
        replace(
            cluster, partitions=(replace(cluster.partitions[0], nodes=(first, second, replace(third, gres=""))),) * 2
        )
    )
    assert "2 × 8 core(s), 4 GiB, gpu:2; 1 × 8 core(s), 4 GiB, no GPU" in line.text


def test_nothing_to_warn_of() -> None:
    assert warned(healthy()) == []


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"JobRequeue": "0"}, "JobRequeue: 0: a job comes back only if it asks for it; `submit` passes --requeue"),
        ({"MaxArraySize": "1"}, "MaxArraySize: no array jobs here"),
        ({"EnforcePartLimits": "NO"}, "EnforcePartLimits: NO: what a partition can never give may wait for ever"),
        ({"SelectType": "select/linear"}, "SelectType: select/linear: --gpus-per-node needs select/cons_tres"),
        (
            {"SelectTypeParameters": "CR_CORE_MEMORY", "DefMemPerCPU": "1024"},
            "memory: a job gets 1024 MiB per core unless it asks: --sbatch mem=0",
        ),
        ({"SlurmctldParameters": "(null)"}, "preemption: SlurmctldParameters lack preempt_send_user_signal"),
    ],
)
def test_settings_that_bite(settings: dict[str, str], sentence: str) -> None:
    (found,) = warned(healthy(**settings))
    assert found.startswith(sentence)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"preempt_mode": "CANCEL"}, "jobs in preempt make room for train and do not come back (CANCEL)"),
        ({"preempt_mode": "GANG,SUSPEND"}, "jobs in preempt make room for train by being stopped in place (SUSPEND)"),
        (
            {"grace_s": 20},
            "jobs in preempt make room for train within 20 s (GraceTime), less than a save may need (300 s",
        ),
    ],
)
def test_ways_to_be_preempted(changes: dict[str, Any], sentence: str) -> None:
    (found,) = warned(with_second(healthy(), **changes))
    assert found.startswith(f"preemption: {sentence}")
    assert warned(with_second(healthy(), **changes), Profile(partition="train")) == [], "not where this site's jobs go"
    assert warned(with_second(healthy(PreemptType="preempt/none"), **changes)) == []


def test_preemption_by_qos_is_only_pointed_at() -> None:
    findings = list(problems(healthy(PreemptType="preempt/qos"), Profile(), 300))
    assert [(item.level, item.subject) for item in findings] == [("note", "preemption")]
    assert "sacctmgr show qos" in findings[0].text


def test_the_real_clusters_faults() -> None:
    assert warned(real_cluster()) == [
        "KillWait: a cancelled job has 5 s to save, not 300 s (--save-s): use `launch stop` instead, it waits",
        "preemption: jobs in preempt make room for train within 20 s (GraceTime), less than a save may need "
        "(300 s, --save-s): save often (checkpoint.every_steps)",
        "nodes: 1 of 3 take no job: n3 down (cable cut | n3); ask for fewer, or ask the administrators",
    ]


def test_many_lost_nodes_are_not_all_named() -> None:
    cluster = healthy()
    lost = tuple(replace(cluster.nodes[0], name=f"n{number}", state="down*") for number in range(9))
    (found,) = warned(replace(cluster, partitions=(replace(cluster.partitions[0], nodes=lost),)))
    assert found.startswith("nodes: 9 of 9 take no job: n0 down*, n1 down*, n2 down*, n3 down*, n4 down*, …;")


@pytest.mark.parametrize(
    ("changes", "profile", "sentence"),
    [
        ({}, Profile(partition="gpu"), "profile: partition gpu does not exist here, only train, preempt"),
        ({"is_up": False}, Profile(partition="preempt"), "profile: partition preempt is not up"),
        (
            {"accounts": ("red", "blue")},
            Profile(partition="preempt", account="green"),
            "profile: partition preempt is for account red, blue, not green",
        ),
        (
            {"max_time": "12:00:00"},
            Profile(),
            "time limit: preempt 12:00:00: shorter than the 24:00:00 that a job asks",
        ),
        (
            {"max_time": "1:00"},
            Profile(sbatch={"time": "2:00"}),
            "time limit: preempt 1:00: shorter than the 2:00 that",
        ),
    ],
)
def test_profiles_that_do_not_fit(changes: dict[str, Any], profile: Profile, sentence: str) -> None:
    (found,) = warned(with_second(healthy(), **changes), profile)
    assert found.startswith(sentence)


def test_without_a_default_partition_one_must_be_named() -> None:
    cluster = healthy()
    cluster = replace(cluster, partitions=tuple(replace(item, is_default=False) for item in cluster.partitions))
    assert warned(cluster) == ["profile: no partition is the default: name one of train, preempt in a profile"]
    assert warned(cluster, Profile(partition="train")) == []


def test_accounts() -> None:
    profile = Profile(account="green")
    (found,) = problems(healthy(), profile, 300, ("blue", "red"))
    assert found.text == "account green is none of yours (blue, red): adapt it"
    assert list(problems(healthy(), profile, 300, ("green",))) == list(problems(healthy(), profile, 300)) == []


def test_accounting() -> None:
    assert diagnose_accounting(real_cluster(), "").level == "ok"
    found = diagnose_accounting(real_cluster(), "Slurm accounting storage is disabled")
    assert found.level == "note"
    assert "ended jobs are known for 300 s" in found.text


def test_where_runs_would_go(monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = diagnose_folder(Path("/tmp/runs"))
    assert found.text.startswith("/tmp/runs: /tmp is each node's own")
    monkeypatch.setattr(doctor, "file_system_of", lambda folder: "xfs")
    (found,) = diagnose_folder(Path("/shared/runs"))
    assert found.text.startswith("/shared/runs is on xfs, a disk of this machine")
    monkeypatch.setattr(doctor, "file_system_of", lambda folder: "lustre")
    assert list(diagnose_folder(Path("/shared/runs"))) == []


def report(folder: Path) -> list[Diagnostic]:
    return list(diagnose_slurm(folder, Profile(), 300))


def test_no_slurm_is_one_note(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (found,) = report(tmp_path)
    assert (found.level, found.subject) == ("note", "Slurm")


def play(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(f"#!/bin/bash\n{text}\n")
    (folder / name).chmod(0o755)


def test_a_silent_controller_is_one_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("scontrol", "sinfo", "sbatch"):
        play(tmp_path, name, "exec /bin/sleep 60")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(capabilities, "ASK_S", 0.2)
    lines = [(item.level, item.subject, item.text) for item in report(tmp_path)]
    assert lines[0] == ("ok", "Slurm's commands", f"sbatch scontrol sinfo in {tmp_path}")
    assert lines[1][2].startswith("srun squeue scancel not on the PATH")
    assert lines[2][:2] == ("warn", "Slurm's controller")
    assert "Slurm: none" in lines[2][2]
    assert len(lines) == 3


def test_a_controller_that_refuses_is_quoted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (*doctor.COMMANDS, "sinfo"):
        play(tmp_path, name, "echo 'scontrol: fatal: no configuration' >&2; exit 1")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert (
        "scontrol show config: scontrol: fatal: no configuration. The controller may be down"
        in report(tmp_path)[1].text
    )


def test_the_whole_of_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With Slurm's commands played by scripts that repeat the real answers."""
    for name in doctor.COMMANDS:
        play(tmp_path, name, "exit 1")
    answers = tmp_path / "answers"
    answers.mkdir()
    for name in ("config", "partitions", "nodes"):
        (answers / name).write_text(answer(name))
    play(tmp_path, "scontrol", f'case "$*" in *config) cat {answers}/config ;; *) cat {answers}/partitions ;; esac')
    play(tmp_path, "sinfo", f"cat {answers}/nodes")
    play(tmp_path, "sacct", "true")
    play(tmp_path, "sacctmgr", "echo blue")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    findings = list(diagnose_slurm(tmp_path, Profile(account="green"), 300))
    assert [item.subject for item in findings if item.level == "ok"][:4] == [
        "Slurm's commands", "Slurm", "partition train*", "partition preempt",
    ]  # fmt: skip
    assert "account green is none of yours (blue): adapt it" in [item.text for item in findings]
    assert ("ok", "sacct") in [(item.level, item.subject) for item in findings]
