"""What a run is trained on: the machine and the versions, said when the training starts and read by its report."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Iterator
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


def processor_name() -> str:
    """Return the processor's name as the system tells it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
