"""Run folders as a job leaves them, for the tests of what is decided from them."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from cclm.run.causes import Cause, cause_of_code
from cclm.run.checkpoints import Marker, step_folder, write_marker
from cclm.run.status import RankEnd, StatusRecord
from launch.plan.request import Profile, SlurmRequest
from launch.plan.slurm_job import SlurmPlan, plan_job
from launch.slurm.history import Event, add_event, next_attempt, read_history


def make_run(folder: Path, **changes: Any) -> Path:
    """A run of two nodes that was submitted as job 7; `changes`: of its request."""
    run = folder / "run"
    (run / "slurm").mkdir(parents=True)
    write_plan(run, **changes)
    add_event(run, Event(event="submitted", job="7", by_user=True))
    return run


def write_plan(run: Path, *, scratch: str | None = None, **changes: Any) -> SlurmPlan:
    nodes = 1 if changes.get("array") else 2
    request = SlurmRequest(
        name="run", run_folder=run, checkout=run, command=("true",), nodes=nodes, preflight="quick", hang_s=0.0
    )
    plan = plan_job(replace(request, **changes), Profile(scratch=scratch))
    (run / "slurm/plan.json").write_text(plan.to_json())
    return plan


def checkpoint(run: Path, step: int) -> None:
    step_folder(run, step).mkdir(parents=True)
    write_marker(step_folder(run, step), Marker(step=step, world_size=1, files={}))


def begun(run: Path, step: int, nodes: str = "n[1-2]") -> int:
    attempt = next_attempt(read_history(run))
    add_event(run, Event(event="begin", job="7", attempt=attempt, step=step, nodes=nodes))
    return attempt


def ended(run: Path, attempt: int, exit_status: str) -> None:
    add_event(run, Event(event="end", job="7", attempt=attempt, exit_status=exit_status))


def rank_end(
    run: Path,
    rank: int,
    code: int,
    *,
    attempt: int = 0,
    time: float = 0.0,
    cause: Cause | None = None,
    reason: str = "",
) -> None:
    (run / "status").mkdir(exist_ok=True)
    end = RankEnd(
        rank=rank, host=f"n{rank + 1}", attempt=attempt, code=code, time=time, cause=cause or cause_of_code(code),
        reason=reason,
    )  # fmt: skip
    (run / "status" / f"exit_rank_{rank}.json").write_text(json.dumps(asdict(end)))


def rank_says(run: Path, rank: int, *, step: int, time: float, phase: str = "training", cause: str = "") -> None:
    (run / "status").mkdir(parents=True, exist_ok=True)
    record = StatusRecord(
        rank=rank, step=step, phase=phase, time=round(time, 3), host=f"n{rank + 1}", pid=1, cause=cause
    )
    (run / "status" / f"rank_{rank}.json").write_text(json.dumps(asdict(record)))


def log_lines(run: Path, lines: list[tuple[int, float, float]], total: int = 100) -> None:
    """Lines of the metrics' log: step, time, loss; and the configuration with the number of steps."""
    text = "".join(
        json.dumps({"step": step, "time": time, "values": {"loss": loss, "speed/samples_per_s": 4.0}}) + "\n"
        for step, time, loss in lines
    )
    (run / "log.jsonl").write_text(text)
    (run / "config.yaml").write_text(f"optimizer: {{total_steps: {total}}}\n")
