"""One node looks at itself before the ranks start, and writes down what it finds. Run once on each node, with nothing
but the standard library and our own files; `launch/slurm/node_health.py` compares the nodes.

    python -m launch.slurm.preflight RUN        ──► RUN/slurm/preflight/ATTEMPT/HOST.json
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cclm.files.atomic import replace_text
from cclm.run.machine import ask_nvidia
from launch.plan.network import look as look_at_network
from launch.plan.slurm_job import read_plan
from launch.plan.snapshot import code_hash

PROBE_BYTES = 8 * 2**20
"""Written and synced in each folder that must be writable."""
HEAD_BYTES = 65536
NVIDIA_FIELDS = ("name", "memory.total", "memory.free", "clocks.sm", "clocks.max.sm", "clocks_throttle_reasons.active")


def memory_free_bytes() -> int:
    """Return the memory that the node has for a new process, whatever this job may use of it."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), 0)


def disk(folder: Path) -> dict[str, Any]:
    """Write, sync and remove a file; also says how far the file server's clock is from this one's."""
    path = folder / f".preflight.{socket.gethostname()}.{os.getpid()}"
    try:
        began, now = time.monotonic(), time.time()
        with path.open("wb") as file:
            file.write(os.urandom(2**20) * (PROBE_BYTES // 2**20))
            file.flush()
            os.fsync(file.fileno())
        seconds = time.monotonic() - began
        skew_s = path.stat().st_mtime - now
        return {
            "bytes_per_s": PROBE_BYTES / max(seconds, 1e-6),
            "free_bytes": shutil.disk_usage(folder).free,
            "skew_s": 0.0 if 0 <= skew_s <= seconds + 1 else skew_s,
        }
    except OSError as error:
        return {"error": f"{folder}: {error.strerror or error}"}
    finally:
        if path.exists():
            path.unlink()


def unreadable(folders: Sequence[str]) -> Iterator[str]:
    """Look at the manifest and the first bytes of the first tar of each folder."""
    for name in folders:
        folder = Path(name)
        try:
            files = sorted(path for path in folder.iterdir() if path.is_file())
            for path in [path for path in files if path.suffix == ".tar"][:1] + files[:1]:
                with path.open("rb") as file:
                    file.read(HEAD_BYTES)
        except OSError as error:
            yield f"{name}: {error.strerror or error}"


def look(run_folder: Path) -> dict[str, Any]:
    """Everything that this node has to say."""
    plan = read_plan(run_folder)
    began = time.monotonic()
    scratch = Path(plan.profile.scratch) if plan.profile.scratch else None
    return {
        "host": socket.gethostname(),
        "python": sys.version.split()[0],
        "cores": len(os.sched_getaffinity(0)),
        "memory_free_bytes": memory_free_bytes(),
        "gpus": ask_nvidia(NVIDIA_FIELDS) if plan.request.gpus_per_node else [],
        "visible_gpus": os.environ.get("CUDA_VISIBLE_DEVICES", ""),
        "network": str(look_at_network(towards=os.environ.get("MASTER_ADDR"))),
        "run_disk": disk(run_folder),
        "scratch_disk": disk(scratch) if scratch else None,
        "unreadable": list(unreadable(plan.request.reads)),
        "code_hash": code_hash(plan.code_folder),
        "seconds": round(time.monotonic() - began, 3),
    }


def main(arguments: list[str]) -> int:
    """Look, and write it down, whole or not at all."""
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    run_folder = Path(arguments[0])
    attempt = os.environ["CCLM_ATTEMPT"]
    node = os.environ.get("SLURMD_NODENAME", socket.gethostname())
    replace_text(run_folder / "slurm" / "preflight" / attempt / f"{node}.json", json.dumps(look(run_folder)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
