"""What this cluster can do, as it says itself: settings, partitions, nodes. Parsing is a pure function of the text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from cclm.errors import CclmError
from launch.slurm.jobs import ask_slurm, told_by_slurm

ASK_S = 10.0
"""A report must not wait long for a controller that is down."""
CONFIG = ("scontrol", "show", "config")
PARTITIONS = ("scontrol", "--oneliner", "show", "partition")
NODES = ("sinfo", "--Node", "--noheader", "--format=%R|%N|%T|%c|%m|%G|%E")
ACCOUNTING = ("sacct", "--noheader", "--allocations", "--format=jobid")
_NOTHING = ("(null)", "N/A", "none", "")
_SETTING = re.compile(r"(\S+)\s*= ?(.*)")
_FLAGS = "*~#!%$@^+-"
"""What sinfo puts behind a state: not responding, powered down, …"""
_UNUSABLE = re.compile(r"down|drain|fail|error|inval|unknown|no_respond")


@dataclass(frozen=True, kw_only=True)
class Node:
    """One node."""

    name: str
    state: str
    """In Slurm's words, such as "idle" or "down*" ("*": it does not answer)."""
    cores: int
    memory_mib: int
    gres: str
    """GPUs and the like, such as "gpu:a100:8"; "" for none."""
    reason: str
    """Why an administrator or Slurm took it away; "" for none."""

    @property
    def plain_state(self) -> str:
        """The state without the marks behind it."""
        return self.state.rstrip(_FLAGS)

    @property
    def is_usable(self) -> bool:
        """Whether it will ever take a job as it is now; a busy node is usable."""
        return not self.state.endswith("*") and _UNUSABLE.match(self.state) is None


@dataclass(frozen=True, kw_only=True)
class Partition:
    """One partition (queue)."""

    name: str
    is_default: bool
    is_up: bool
    max_time: str
    """Longest time limit, in Slurm's form or "UNLIMITED"."""
    preempt_mode: str
    """What is done to a job here that must make room: "OFF", "REQUEUE", "CANCEL" or "SUSPEND"."""
    grace_s: int
    """Seconds from the warning of a preempted job to its end."""
    tier: int
    """Jobs of a higher tier may preempt those of a lower."""
    accounts: tuple[str, ...] | None
    """Who may use it; None: everyone."""
    nodes: tuple[Node, ...]


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What the controller tells."""

    settings: Mapping[str, str]
    """`scontrol show config`."""
    partitions: tuple[Partition, ...]

    def setting(self, name: str) -> str:
        """One setting; "" if it is not set, or not known to this version."""
        value = self.settings.get(name, "")
        return "" if value in _NOTHING else value

    def seconds(self, name: str) -> int:
        """A setting that Slurm prints as "30 sec"; 0 if it is not set."""
        return int(re.match(r"\d*", self.setting(name)).group() or 0)  # type: ignore[union-attr]

    @property
    def nodes(self) -> tuple[Node, ...]:
        """Every node once."""
        return tuple({node.name: node for partition in self.partitions for node in partition.nodes}.values())

    def preemptors(self, partition: Partition) -> tuple[str, ...]:
        """Partitions of a higher tier on the same nodes: their jobs may push out those of this one."""
        if self.setting("PreemptType") != "preempt/partition_prio" or partition.preempt_mode.upper() == "OFF":
            return ()
        mine = {node.name for node in partition.nodes}
        higher = (other for other in self.partitions if other.tier > partition.tier)
        return tuple(other.name for other in higher if mine & {node.name for node in other.nodes})


def read_cluster() -> Cluster:
    """Ask the controller. Raise CclmError if it does not answer, or refuses."""
    advice = "The controller may be down: ask `scontrol ping`."
    config, partitions, nodes = (
        told_by_slurm(command, expected="an answer", do=advice, timeout_s=ASK_S).stdout
        for command in (CONFIG, PARTITIONS, NODES)
    )
    return parse_cluster(config, partitions, nodes)


def parse_cluster(config: str, partitions: str, nodes: str) -> Cluster:
    """Parse what the three commands print: "KillWait                = 30 sec", a line a partition, a line a node."""
    found: dict[str, list[Node]] = {}
    for line in nodes.splitlines():
        partition, name, state, cores, memory, gres, reason = line.split("|", 6)
        node = Node(
            name=name,
            state=state,
            cores=int(cores.rstrip("+")),
            memory_mib=int(memory.rstrip("+")),
            gres="" if gres in _NOTHING else re.sub(r"\(S:[^)]*\)", "", gres),
            reason="" if reason in _NOTHING else reason,
        )
        found.setdefault(partition, []).append(node)
    lines = (dict(word.partition("=")[::2] for word in line.split()) for line in partitions.splitlines())
    told = tuple(
        Partition(
            name=values["PartitionName"],
            is_default=values.get("Default") == "YES",
            is_up=values.get("State", "UP") == "UP",
            max_time=values.get("MaxTime", "UNLIMITED"),
            preempt_mode=values.get("PreemptMode", "OFF"),
            grace_s=int(values.get("GraceTime", 0)),
            tier=int(values.get("PriorityTier", 1)),
            accounts=None if (who := values.get("AllowAccounts", "ALL")) == "ALL" else tuple(who.split(",")),
            nodes=tuple(found.get(values["PartitionName"], ())),
        )
        for values in lines
        if "PartitionName" in values
    )
    matches = (_SETTING.fullmatch(line) for line in config.splitlines())
    return Cluster(settings={match[1]: match[2].strip() for match in matches if match is not None}, partitions=told)


def why_no_accounting() -> str:
    """Why `sacct` does not tell about ended jobs; "" if it does."""
    try:
        answer = ask_slurm(ACCOUNTING, timeout_s=ASK_S)
    except CclmError as error:
        return f"got {error.got}"
    return "" if answer.returncode == 0 else answer.stderr.strip() or f"exit code {answer.returncode}"


def my_accounts(user: str) -> tuple[str, ...] | None:
    """Accounts that a user may charge; None if there is no data base of them."""
    words = ("sacctmgr", "--noheader", "--parsable2", "show", "associations", f"user={user}", "format=account")
    try:
        answer = ask_slurm(words, timeout_s=ASK_S)
    except CclmError:
        return None
    return tuple(sorted(set(answer.stdout.split()))) if answer.returncode == 0 else None
