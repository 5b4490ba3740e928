"""The state of runs for people: a row each, or a block for one."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from cclm.files.text import duration, table
from cclm.run.progress import Progress
from launch.slurm.history import Attempt
from launch.slurm.jobs import JobsNow
from launch.watch.run_folder import in_groups
from launch.watch.status import UNKNOWN, RunNow, silent_after_s

RIGHT = ("step", "loss", "samples/s", "to go", "attempts", "saved")
HEAD = ("run", "job", "state", "nodes", "phase", *RIGHT, "last word")
NOTHING = "-"
DETAILS = {
    "Partition": "partition",
    "TimeLimit": "limit",
    "RunTime": "runs for",
    "EndTime": "ends by",
    "Restarts": "Slurm's restarts",
    "Dependency": "waits for",
}
"""The part of `scontrol show job` that nothing else tells, and how we say it."""


def as_table(runs: Sequence[RunNow], unreadable: Mapping[Path, str], root: Path) -> str:
    """Return one row for each run; runs in `root` go by their name there."""
    rows = {run.run_folder: _row(run, _name(run.run_folder, root)) for run in runs}
    for path, sentence in unreadable.items():
        rows[path] = (_name(path, root), *[NOTHING] * 10, sentence)
    return table(HEAD, [rows[path] for path in sorted(rows)], right=RIGHT)


def _name(path: Path, root: Path) -> str:
    inside = path.is_relative_to(root.absolute())
    return str(path.relative_to(root.absolute())) if inside else str(path)


def _row(run: RunNow, name: str) -> tuple[str, ...]:
    progress = run.progress
    is_training = run.kind in ("training", "local")
    is_waiting = run.state == "PENDING" and bool(run.reason)
    said = (str(run.array_tasks or ""), run.silence, run.last_word, *progress.notes)
    return (
        name,
        run.job or NOTHING,
        f"{run.state} ({run.reason})" if is_waiting else run.state,
        run.nodes or NOTHING,
        run.phase or NOTHING,
        _steps(progress) if is_training else NOTHING,
        _number(progress.loss, ".4g"),
        _number(progress.samples_per_s, ".1f"),
        duration(progress.eta_s) if progress.eta_s is not None and run.phase == "training" else NOTHING,
        str(len(run.attempts)) if run.attempts else NOTHING,
        str(progress.checkpoint_step) if progress.checkpoint_step else NOTHING,
        "; ".join(part for part in said if part) or NOTHING,
    )


def _steps(progress: Progress) -> str:
    return str(progress.step) if progress.total_steps is None else f"{progress.step}/{progress.total_steps}"


def _number(value: float | None, form: str) -> str:
    return NOTHING if value is None else format(value, form)


def as_block(run: RunNow, details: Mapping[str, str]) -> str:
    """Return everything about one run. `details`: what `scontrol show job` says."""
    told = list(_facts(run, details))
    width = max(len(name) for name, _ in told)
    lines = [f"{name:{width}}  {value}" for name, value in told if value]
    if run.attempts:
        lines += ["", _attempts(run.attempts, run.job if run.state == "RUNNING" else "")]
    return "\n".join(lines)


def _facts(run: RunNow, details: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    progress = run.progress
    yield "run", str(run.run_folder)
    # Why it is not known is said once, below.
    reason = f" ({run.reason})" if run.reason and run.state != UNKNOWN else ""
    yield "state", (f"job {run.job}: " if run.job else "") + run.state + reason + (f" on {run.nodes}" * bool(run.nodes))
    shown = {words: details.get(name, "0") for name, words in DETAILS.items()}
    yield "job", ", ".join(f"{words} {value}" for words, value in shown.items() if value != "0")
    yield "tasks", "" if run.array_tasks is None else str(run.array_tasks)
    yield "phase", run.phase
    if run.kind in ("training", "local"):
        speed = "" if progress.samples_per_s is None else f", {progress.samples_per_s:.1f} samples/s"
        loss = "" if progress.loss is None else f", loss {progress.loss:.4g}"
        shows_end = progress.eta_s is not None and run.phase == "training"
        to_go = f", {duration(progress.eta_s or 0.0)} to go" if shows_end else ""
        yield "step", _steps(progress) + loss + speed + to_go
        yield "time", progress.time
        yield "checkpoint", f"step {progress.checkpoint_step}" if progress.checkpoint_step else "none yet"
    yield "silence", run.silence
    yield "last word", run.last_word
    yield "note", "; ".join(progress.notes)
    after_s = silent_after_s(progress) if run.state.lower() == "running" else float("inf")
    for number, line in enumerate(in_groups(run.ranks, silent_after_s=after_s)):
        yield "ranks" if number == 0 else "", line


def _attempts(attempts: Sequence[Attempt], running_job: str) -> str:
    rows = []
    for attempt in attempts:
        is_running = attempt.ended is None and attempt.job == running_job and attempt is attempts[-1]
        lasted = duration(attempt.ended - attempt.began) if attempt.ended is not None else NOTHING
        how = f"{attempt.exit_status}: {attempt.reason}" if attempt.exit_status else "cut off from outside"
        began = time.strftime("%m-%d %H:%M:%S", time.localtime(attempt.began))
        where = (str(attempt.number), attempt.job, attempt.nodes, began, lasted, str(attempt.first_step))
        rows.append((*where, "runs" if is_running else how))
    head = ("attempt", "job", "nodes", "began", "lasted", "from step", "how it ended")
    return table(head, rows, right=("attempt", "lasted", "from step"))


def as_json(runs: Sequence[RunNow], unreadable: Mapping[Path, str], jobs: JobsNow) -> str:
    """Return everything, for programs."""
    content = {
        "accounts": jobs.accounts,
        "slurm": jobs.silence or "answers",
        "runs": [asdict(run) for run in runs],
        "unreadable": {str(path): sentence for path, sentence in unreadable.items()},
    }
    return json.dumps(content, indent=2, sort_keys=True, default=str)
