"""What this machine has for a job: cores, memory, GPUs, ports, versions. Imports nothing of what it names."""

from __future__ import annotations

import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
CGROUP_QUOTA = CGROUPS / "cpu.max"
LOOPBACK = "127.0.0.1"
ENVIRONMENT_NAME = "environment.json"
"""In a run folder: what it was trained on, said when the training started and read by its report."""
MOST_WORKERS = 16
"""Each holds a finished batch; a GPU's step has not been seen to need more."""
SLURM_CORES = "SLURM_CPUS_PER_TASK"
THREADS = "OMP_NUM_THREADS"
PACKAGES = ("torch", "deepspeed", "transformers", "tokenizers", "webdataset", "pyarrow", "numpy", "pillow")
"""Packages whose versions decide numbers."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The facts that a plan depends on."""

    host: str
    cores: tuple[int, ...]
    """Numbers of the cores that this process may use (its affinity mask)."""
    quota_cores: float | None
    """Cores' worth of time that the container may use; None without a limit."""
    num_gpus: int
    free_port: int
    """A TCP port on the loopback address that nobody listened on a moment ago."""

    @property
    def usual_ranks(self) -> int:
        """Processes of a job that says nothing else: one per GPU, or one."""
        return max(self.num_gpus, 1)

    @property
    def num_usable_cores(self) -> int:
        """Cores to share out: the affinity mask, or the container's limit if that is smaller; at least 1."""
        if self.quota_cores is None:
            return len(self.cores)
        return max(1, min(len(self.cores), int(self.quota_cores)))


def this_machine(environment: Mapping[str, str] = os.environ) -> Machine:
    """Look at the machine that this process runs on."""
    return Machine(
        host=socket.gethostname(),
        cores=tuple(sorted(os.sched_getaffinity(0))),
        quota_cores=read_quota(CGROUP_QUOTA),
        num_gpus=count_gpus(Path("/dev"), environment),
        free_port=free_port(),
    )


def read_quota(path: Path) -> float | None:
    """Read a cgroup-v2 limit ("200000 100000" is two cores); None if there is no file or no limit."""
    try:
        quota, period = path.read_text().split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else int(quota) / int(period)


def usable_cores(quota: Path = CGROUP_QUOTA) -> float:
    """Return the cores' worth of time that this process may use: its affinity mask, or a smaller container's limit."""
    allowed, limit = float(len(os.sched_getaffinity(0))), read_quota(quota)
    return allowed if limit is None else min(allowed, limit)


def available_memory_bytes(proc: Path = Path("/proc"), cgroups: Path = CGROUPS) -> int:
    """Return the memory that this machine, or the container if that is less, has left for more; a large number where
    nobody says. What files take in the page cache counts as left: the kernel gives it back."""
    left = [sys.maxsize]
    try:
        lines = (proc / "meminfo").read_text(encoding="ascii").splitlines()
        left += [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
        groups = [line.split(":", 2) for line in (proc / "self/cgroup").read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError):
        return min(left)
    for _, controllers, path in groups:
        if controllers == "memory":  # version 1
            left += _left_in_group(cgroups / "memory", path, "limit_in_bytes", "usage_in_bytes", "total_")
        elif not controllers:
            left += _left_in_group(cgroups, path, "max", "current", "")
    return min(left)


def process_memory_bytes(pid: int | str = "self") -> tuple[int, int]:
    """Return the resident memory of a process, shared pages included, now and at its peak; zeros if it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return 0, 0
    found = {
        name: 1024 * int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines) if "kB" in rest
    }
    return found.get("VmRSS", 0), found.get("VmHWM", 0)


def _left_in_group(root: Path, path: str, limit: str, used: str, prefix: str) -> Iterator[int]:
    """What a cgroup and those that it is in have left, where they have a limit."""
    own = root / path.lstrip("/")
    for folder in (own, *own.parents):
        if not folder.is_relative_to(root):
            return
        try:
            most, now = (int((folder / f"memory.{name}").read_text(encoding="ascii")) for name in (limit, used))
            stat = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines())
            cached = sum(int(stat.get(f"{prefix}{name}_file", 0)) for name in ("inactive", "active"))
            yield max(0, most - now + cached)
        except (OSError, ValueError):  # not there, or "max": no limit
            continue


def count_gpus(devices: Path, environment: Mapping[str, str]) -> int:
    """Count NVIDIA device files, or what CUDA_VISIBLE_DEVICES leaves of them."""
    present = sum(1 for path in devices.glob("nvidia*") if re.fullmatch(r"nvidia\d+", path.name))
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return present
    return min(present, len([name for name in visible.split(",") if name.strip() not in ("", "-1")]))


def ask_nvidia(fields: Sequence[str], *, with_units: bool = False) -> list[dict[str, str]] | str:
    """Return what nvidia-smi tells about each visible GPU; a sentence if it fails; nothing if there is none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    form = "csv,noheader" if with_units else "csv,noheader,nounits"
    query = [program, f"--query-gpu={','.join(fields)}", f"--format={form}"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return f"nvidia-smi does not answer: {error}"
    rows = [[cell.strip() for cell in line.split(",")] for line in answer.splitlines() if line.strip()]
    return [dict(zip(fields, row, strict=True)) for row in rows if len(row) == len(fields)]


def file_system_of(path: Path, mounts: str | None = None) -> str:
    """Return the kind of file system that a path lies on, such as "nfs4". `mounts`: text of /proc/self/mounts."""
    text = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace") if mounts is None else mounts
    place, longest, kind = path.resolve(), -1, "unknown"
    for line in text.splitlines():
        _, mounted, found = line.split(" ")[:3]
        mount = Path(re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), mounted))
        # Of two mounts at one place the later one covers the earlier.
        if place.is_relative_to(mount) and len(mount.parts) >= longest:
            longest, kind = len(mount.parts), found
    return kind


def free_port() -> int:
    """Return a TCP port of the loopback interface that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def why_port_is_taken(port: int) -> str:
    """Return why nobody can listen at a port, in words; "" if one can."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as who listens there does: recent use is no harm
        try:
            probe.bind(("", port))
            probe.listen()
        except (OSError, OverflowError) as error:
            return getattr(error, "strerror", None) or str(error)
    return ""


def describe_environment() -> dict[str, str]:
    """Return hardware, versions of what is installed, and the time now (`started`), without importing any of it.
    `ranks` is what the launcher said (1 without one), `cores` are those that this process, one rank, may use."""
    found = {
        "machine": f"{processor_name()}, {platform.system()} {platform.machine()}",
        "ranks": os.environ.get("WORLD_SIZE") or "1",
        "cores": f"{usable_cores():g}",
        "python": platform.python_version(),
    }
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    found["started"] = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    return found


def processor_name() -> str:
    """Return the processor's name as the system tells it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


@dataclass(frozen=True, kw_only=True)
class RankCores:
    """What a rank tells the others about itself."""

    host: str
    mask: tuple[int, ...]
    quota: float | None
    """Cores' worth of time of its container; None without a limit."""
    promised: int | None
    """What Slurm gives each task."""
    task: str
    """Which one this is in: ranks that torchrun or `launch run` starts inside of one share what it was given."""


@dataclass(frozen=True, kw_only=True)
class CoreShare:
    """What a rank takes of its machine."""

    cores: int
    threads: int
    num_workers: int

    def __str__(self) -> str:
        return f"{self.cores} core(s) a rank: {self.threads} thread(s), {self.num_workers} loader worker(s)"


def own_cores(environment: Mapping[str, str] = os.environ, quota: Path = CGROUP_QUOTA) -> RankCores:
    """Return what this process may use."""
    promised = environment.get(SLURM_CORES, "")
    return RankCores(
        host=socket.gethostname(),
        mask=tuple(sorted(os.sched_getaffinity(0))),
        quota=read_quota(quota),
        promised=int(promised) if promised.isdecimal() and int(promised) > 0 else None,
        task=environment.get("SLURM_PROCID", ""),
    )


def share_cores(
    everyone: Sequence[RankCores], rank: int, *, has_gpu: bool, environment: Mapping[str, str]
) -> CoreShare:
    """Return the share of one of all ranks: of its cores, divided by the ranks of its machine that have the same ones;
    fewer where Slurm promised fewer (without binding) or the container has less time. On a GPU the process itself keeps
    two (Python, and the autograd engine's thread), loader workers take the others; without one all compute.
    OMP_NUM_THREADS, which torchrun and `python -m launch` set, wins. No number of a run depends on it."""
    own = everyone[rank]
    near = [other for other in everyone if other.host == own.host]
    sharing = sum(1 for other in near if set(other.mask) & set(own.mask))
    limits = [len(own.mask) / sharing]
    limits += [] if own.quota is None else [own.quota / len(near)]
    limits += [] if own.promised is None else [own.promised / sum(other.task == own.task for other in near)]
    cores = max(1, int(min(limits)))
    kept = 1 if cores < 4 else 2
    num_workers = min(cores - kept, MOST_WORKERS) if has_gpu else 0
    given = environment.get(THREADS, "").partition(",")[0]  # one number for each level of nested regions
    threads = int(given) if given.isdecimal() and int(given) > 0 else max(1, cores - num_workers)
    return CoreShare(cores=cores, threads=threads, num_workers=num_workers)
