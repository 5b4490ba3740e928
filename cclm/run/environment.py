"""What a run is trained on: the machine and the versions, said when the training starts and read by its report."""

from __future__ import annotations

import os
import platform
import time
from importlib import metadata
from pathlib import Path

from cclm.run.machine import usable_cores

ENVIRONMENT_NAME = "environment.json"

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


def processor_name() -> str:
    """Return the processor's name as the system tells it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
