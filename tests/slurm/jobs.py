"""Jobs on the test cluster: submit through `python -m launch`, look at files, ask Slurm."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from launch.slurm.history import Attempt, attempts_since_submission, read_history
from tests.tiny_run import recipe, write_recipe

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 600.0
"""For a loaded machine; an idle one needs a tenth."""
STEPS_ALONE = 8
"""Steps of the run of one process that others are compared with."""
AS_USER = ("setpriv", "--reuid", "trainer", "--regid", "trainer", "--clear-groups")
ENVIRONMENT = {
    **os.environ,
    "PYTHONWARNINGS": "ignore",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "TOKENIZERS_PARALLELISM": "false",
    "HOME": os.environ.get("HOME", "/tmp"),
}


def slurm(*command: str) -> str:
    """Ask Slurm; a controller that hangs fails the test."""
    done = subprocess.run(["timeout", "120", *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def launch(*words: str, prefix: tuple[str, ...] = (), **environment: str) -> subprocess.CompletedProcess[str]:
    command = [*prefix, sys.executable, "-m", "launch", *words]
    return subprocess.run(
        command,
        cwd=ROOT,
        env={**ENVIRONMENT, **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def tiny(corpus: Path, run: Path, steps: int, **changes: Any) -> Path:
    """A recipe of so many steps that four ranks can share; returns its path."""
    optimizer = {"total_steps": steps, "learning_rate": 0.002, "warmup_steps": 2}
    content = recipe(
        corpus, run, **{"optimizer": optimizer, "track": {"every_steps": 1, "tensorboard": False}, **changes}
    )
    content["data"]["bad_sample_limit"] = 0.2
    for view in ("image_text", "text_pair"):
        content["views"][view] |= {"negative_group": 4, "matching_rows": 4}
    run.parent.mkdir(parents=True, exist_ok=True)
    return write_recipe(run.parent / f"{run.name}.yaml", content)


def submit(path: Path, *options: str, prefix: tuple[str, ...] = (), **environment: str) -> str:
    """Submit a recipe; returns the job's id."""
    quick = ["--time", "20", "--save-s", "60"]
    told = launch("submit", str(path), *quick, *options, prefix=prefix, **environment)
    assert told.returncode == 0, told.stderr
    return told.stdout.strip()


def wait(condition: Callable[[], Any], what: str, run: Path | None = None, every_s: float = 0.05) -> Any:
    """Wait for something true; a failure shows what the job said."""
    began = time.monotonic()
    while time.monotonic() - began < PATIENCE_S:
        found = condition()
        if found:
            return found
        time.sleep(every_s)
    said = "" if run is None else "\n".join(f"== {path}\n{path.read_text()}" for path in sorted(run.glob("logs/*.log")))
    raise AssertionError(f"waited {PATIENCE_S:.0f} s for {what}\n{slurm('squeue', '-t', 'all')}\n{said}")


def state(job: str) -> str:
    return (slurm("squeue", "--noheader", "--states=all", "--format=%T", "--jobs", job).split() or ["GONE"])[0]


def known_jobs() -> set[str]:
    """Every job of the cluster, also those that are over."""
    return set(slurm("squeue", "--noheader", "--states=all", "--format=%A").split())


def ended(job: str, run: Path) -> str:
    """Wait until a job is over; returns its state."""
    over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "GONE")
    return str(wait(lambda: (now := state(job)) in over and now, f"the end of job {job}", run))


def start_now(job: str) -> None:
    """A requeued job waits 120 s; skip most of that."""
    wait(lambda: state(job) == "PENDING", f"job {job} in the queue")
    # A node refuses a job whose credential was revoked in the very second in which the new one was made.
    time.sleep(2.1)
    slurm("scontrol", "update", f"jobid={job}", "StartTime=now")


def attempts(run: Path) -> list[Attempt]:
    return attempts_since_submission(read_history(run))


def steps_saved(run: Path) -> list[int]:
    """Steps of the complete checkpoints."""
    return sorted(int(path.parent.name.rpartition("_")[2]) for path in run.glob("checkpoints/step_*/complete"))


def read_done(run: Path) -> int | None:
    path = run / "done.json"
    return int(json.loads(path.read_text())["step"]) if path.exists() else None


def said(run: Path) -> str:
    """The batch script's log."""
    path = run / "logs/slurm.log"
    return path.read_text() if path.exists() else ""


def losses(run: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return {line["step"]: line["values"]["loss"] for line in lines}


def exact_values(run: Path) -> list[dict[str, Any]]:
    """The log without what the clock decides."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{"step": line["step"]} | {k: v for k, v in line["values"].items() if "speed/" not in k} for line in lines]
