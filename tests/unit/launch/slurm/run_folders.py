"""Run folders as a job leaves them, for the tests of what is decided from them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cclm.run.checkpoints import Marker, step_folder, write_marker
from cclm.run.status import StatusRecord
from launch.slurm.history import Event, add_event, next_life, read_history

PLAN: dict[str, Any] = {
    "name": "run",
    "is_training": True, "max_tries": 3, "nodes": 2, "tasks_per_node": 1, "gpus_per_node": 0, "preflight": "quick",
    "replace_bad_nodes": False, "hang_s": 0.0, "scratch": None, "reads": [], "directives": {}, "array": 0,
}  # fmt: skip


def make_run(folder: Path, **changes: Any) -> Path:
    run = folder / "run"
    (run / "slurm").mkdir(parents=True)
    write_plan(run, **changes)
    add_event(run, Event(event="submitted", job="7", by_user=True))
    return run


def write_plan(run: Path, **changes: Any) -> None:
    (run / "slurm/plan.json").write_text(json.dumps({**PLAN, "code_folder": str(run / "code"), **changes}))


def checkpoint(run: Path, step: int) -> None:
    step_folder(run, step).mkdir(parents=True)
    write_marker(step_folder(run, step), Marker(step=step, world_size=1, files={}))


def begun(run: Path, step: int, nodes: str = "n[1-2]") -> int:
    life = next_life(read_history(run))
    add_event(run, Event(event="begin", job="7", life=life, step=step, nodes=nodes))
    return life


def ended(run: Path, life: int, outcome: str) -> None:
    add_event(run, Event(event="end", job="7", life=life, outcome=outcome))


def rank_end(
    run: Path, rank: int, code: int, *, life: int = 0, time: float = 0.0, why: str = "", words: str = ""
) -> None:
    (run / "status").mkdir(exist_ok=True)
    record = {"rank": rank, "host": f"n{rank + 1}", "life": life, "code": code, "time": time}
    path = run / "status" / f"exit_rank_{rank}.json"
    path.write_text(json.dumps({**record, "why": why, "last_words": words}))


def rank_says(run: Path, rank: int, *, step: int, time: float, phase: str = "training") -> None:
    (run / "status").mkdir(parents=True, exist_ok=True)
    record = StatusRecord(rank=rank, step=step, phase=phase, time=round(time, 3), host=f"n{rank + 1}", pid=1)
    (run / "status" / f"rank_{rank}.json").write_text(json.dumps(asdict(record)))


def log_lines(run: Path, lines: list[tuple[int, float, float]], total: int = 100) -> None:
    """Lines of the metrics' log: step, time, loss; and the configuration with the number of steps."""
    text = "".join(
        json.dumps({"step": step, "time": time, "values": {"loss": loss, "speed/samples_per_s": 4.0}}) + "\n"
        for step, time, loss in lines
    )
    (run / "log.jsonl").write_text(text)
    (run / "config.yaml").write_text(f"optimizer: {{total_steps: {total}}}\n")
