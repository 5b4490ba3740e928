"""What a run is trained on: the machine and the versions, said when the training starts and read by its report."""

from __future__ import annotations

import os
import platform
import sys
import time
from importlib import metadata
from pathlib import Path

ENVIRONMENT_NAME = "environment.json"
CGROUPS = Path("/sys/fs/cgroup")
CGROUP_QUOTA = CGROUPS / "cpu.max"

PACKAGES = ("torch", "deepspeed", "transformers", "tokenizers", "webdataset", "pyarrow", "numpy", "pillow")
"""Packages whose versions decide numbers."""


def describe_environment() -> dict[str, str]:
    """Return hardware, versions and the time now (`started`), without importing what it names.

    `ranks` is what the launcher said (1 without one). `cores` are those that this process may use, one rank's: its
    affinity mask, or the container's limit if that is smaller.
    A package that is not installed is left out.
    """
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


def usable_cores(quota: Path = CGROUP_QUOTA) -> float:
    """Return the cores' worth of time that this process may use."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        limit, period = quota.read_text(encoding="ascii").split()
        return min(float(allowed), int(limit) / int(period))
    except (OSError, ValueError):  # no cgroup v2, or "max": no limit
        return float(allowed)


def available_memory_bytes(proc: Path = Path("/proc"), cgroups: Path = CGROUPS) -> int:
    """Return the memory that this machine, or the container if that is less, has left for more; a large number where
    nobody says."""
    left = [sys.maxsize]
    try:
        lines = (proc / "meminfo").read_text(encoding="ascii").splitlines()
        left += [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
        own = (proc / "self" / "cgroup").read_text(encoding="utf-8").partition("0::/")[2].strip()
    except OSError:
        return min(left)
    for folder in (cgroups / own, *(cgroups / own).parents):
        try:
            limit, used = (int((folder / f"memory.{name}").read_text(encoding="ascii")) for name in ("max", "current"))
            stat = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines())
            left.append(max(0, limit - used + int(stat.get("inactive_file", 0))))
        except (OSError, ValueError):  # no cgroup v2 here, or "max": no limit
            continue
    return min(left)


def processor_name() -> str:
    """Return the processor's name as the system tells it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
