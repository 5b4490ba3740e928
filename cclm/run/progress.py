"""How far a run has come, read from its folder alone: the same under Slurm, on plain hosts and on one machine.

    log.jsonl, status/rank_0.json, checkpoints/, config.yaml, done.json ──> Progress

What cannot be read is left out, and said in `notes`: one broken line must not hide a run.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, Final, TypeVar

from cclm.errors import CclmError
from cclm.files.lines import StepLines, read_since
from cclm.files.reading import read_yaml
from cclm.run.checkpoints import newest_complete, read_marker
from cclm.run.status import STATUS_FOLDER, DoneMarker, StatusRecord, read_status

LOG_NAME = "log.jsonl"
TAIL_BYTES = 2**18
"""Of the log only so much is read, from its end: enough for many of the longest lines."""
NUM_PACE_LINES = 20
SLOW_SHARE, SLOW_RATIO, MANY_TIMES = 0.05, 1.5, 100.0
"""A rank is slow if the others wait for it so large a share of a step; for data, also by so many times the median."""
SHARE: Final = "speed/time/"
"""Before the name of a section: its share of the time, 0 … 1 (`cclm.train.speed`)."""
COMPUTING: Final = ("vision", "text", "fusion", "losses", "optimizer")
SECTIONS: Final = ("data", "communication", *COMPUTING, "checkpoint", "evaluation", "other")
LIMITS: Final = {
    "data": (
        0.1,
        "waiting for data",
        "raise data.num_workers, or build shards with smaller images (images.short_side)",
    ),
    "communication": (0.15, "waiting for other ranks", "one of them is late: `python -m launch status RUN`"),
    "checkpoint": (0.1, "saving", "save less often (checkpoint.every_steps), or in the background"),
    "evaluation": (0.2, "evaluating", "evaluate less often"),
    "other": (0.2, "in none of the sections", "write a trace (track.profile_steps)"),
}
"""Of sections that do not compute: the share that is too much, what it is, and what to do."""
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One moment of a training run; None: not known, or not yet."""

    phase: str
    """What rank 0 last said: "starting", "training", "saving", "stopped", "done", …; "" if it never said anything."""
    step: int
    """Steps done, by rank 0's last word."""
    total_steps: int | None
    loss: float | None
    """Of the last line of the log."""
    samples_per_s: float | None
    time: str
    """Where it goes, in words (`bottleneck`); "": not known."""
    eta_s: float | None
    """Seconds to the last step at the pace of the last twenty lines of the log."""
    checkpoint_step: int
    """Step of the newest complete checkpoint; 0: none."""
    silent_s: float | None
    """Seconds since rank 0 last said something about itself."""
    usual_silence_s: float | None
    """Seconds between the last lines of the log: a rank says something about itself as often."""
    is_done: bool
    end: StatusRecord | None
    """Rank 0's last word, if that was why it ended."""
    slow_ranks: tuple[str, ...]
    """Sentences about ranks for which the others wait, by the last line of the log."""
    notes: tuple[str, ...]
    """Sentences about what could not be read."""


def read_progress(run_folder: Path, *, now: float | None = None) -> Progress:
    """Read how far a run has come. `now`: seconds since 1970."""
    now = time.time() if now is None else now
    notes: list[str] = []
    path = run_folder / STATUS_FOLDER / "rank_0.json"
    said = read_status(path)
    if said is None and path.exists():
        notes.append(f"{path} cannot be read")
    lines = [
        line for line in _last_lines(run_folder / LOG_NAME, NUM_PACE_LINES, notes) if "evaluation" not in line["values"]
    ]
    total = _or_note(lambda: _total_steps(run_folder), notes)
    done = _or_note(DoneMarker(run_folder).read, notes)
    newest = newest_complete(run_folder)
    steps = (line for line in reversed(lines) if "loss" in line["values"])  # an evaluation has a line of its own
    last: dict[str, Any] = next(steps, lines[-1] if lines else {"step": -1, "values": {}})
    step = done.step if done else max(said.step if said else 0, last["step"] + 1)
    return Progress(
        phase="done" if done else said.phase if said else "",
        step=step,
        total_steps=total,
        loss=last["values"].get("loss"),
        samples_per_s=last["values"].get("speed/samples_per_s"),
        time=bottleneck(last["values"]),
        eta_s=None if done else _eta_s(lines, total, step),
        checkpoint_step=0 if newest is None else read_marker(newest).step,
        silent_s=round(now - said.time, 1) if said else None,
        usual_silence_s=_seconds_per_line(lines),
        is_done=done is not None,
        end=said if said is not None and said.cause else None,
        slow_ranks=tuple(slow_ranks(run_folder, last["values"])),
        notes=tuple(notes),
    )


def slow_ranks(run_folder: Path, values: Mapping[str, float | None]) -> Iterator[str]:
    """Say for which ranks the others wait more than a share of a step. `values`: of a line of the log."""
    step_s, ratio = values.get("speed/step_s"), values.get("speed/data_slowest_ratio")
    if not step_s:
        return
    data_s, late_s = (values.get(f"speed/{name}") or 0.0 for name in ("data_slowest_s", "late_s"))
    if ratio is not None and data_s > SLOW_SHARE * step_s and ratio > SLOW_RATIO:
        more = f"{ratio:.1f} x the median in data" if ratio < MANY_TIMES else "in data, where others hardly wait"
        yield f"{_rank(run_folder, values['speed/data_slowest_rank'])}: {more} ({data_s / step_s:.0%} of a step)"
    if late_s > SLOW_SHARE * step_s:
        who = _rank(run_folder, values["speed/late_rank"])
        share = f"{late_s / step_s:.0%} of a step"
        yield f"{who}: {late_s:.2g} s behind the median at the next step, not for data ({share})"


def _rank(run_folder: Path, number: float | None) -> str:
    said = read_status(run_folder / STATUS_FOLDER / f"rank_{int(number or 0)}.json")
    return f"rank {int(number or 0)}" + (f" on {said.host}" if said is not None else "")


def last_values(run_folder: Path) -> dict[str, float]:
    """Return the newest number of each name in the last lines of the log: not every line has every name."""
    return {name: value for line in _last_lines(run_folder / LOG_NAME) for name, value in line["values"].items()}


def _or_note(read: Callable[[], T | None], notes: list[str]) -> T | None:
    try:
        return read()
    except (CclmError, OSError) as error:
        notes.append(str(error))
        return None


def _last_lines(path: Path, most: int | None = None, notes: list[str] | None = None) -> list[dict[str, Any]]:
    """The last lines of the log that are whole, oldest first; `most`: how many at most."""
    try:
        begins_inside = path.stat().st_size > TAIL_BYTES
        text = read_since(path, 0, TAIL_BYTES)
    except FileNotFoundError:
        return []
    lines = text.split("\n")[int(begins_inside) : -1]  # what follows the last newline is being written
    found = [_parse(line) for line in lines]
    num_broken = found.count(None)
    if num_broken and notes is not None:
        notes.append(f"{num_broken} line(s) of {path.name} cannot be read")
    whole = [line for line in found if line is not None]
    return whole if most is None else whole[-most:]


def log_lines(run_folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of the log, oldest first; what has not step, time and values is left out."""
    return filter(_is_whole, StepLines(run_folder / LOG_NAME).read())


def _parse(text: str) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
    except ValueError:
        return None
    return line if _is_whole(line) else None


def _is_whole(line: Any) -> bool:
    try:
        return isinstance(line["step"], int) and isinstance(line["values"], dict) and line["time"] >= 0
    except (KeyError, TypeError):
        return False


def _total_steps(run_folder: Path) -> int | None:
    path = run_folder / "config.yaml"
    if not path.exists():
        return None
    content = read_yaml(path, expected="the configuration of a run", do="Remove it: the run writes it again.")
    if not isinstance(content, dict):
        return None
    if (content.get("finetune") or {}).get("epochs") == 0:  # a model is measured as it comes
        return 0
    steps = (content.get("optimizer") or {}).get("total_steps")
    return int(steps) if steps is not None else None


def _eta_s(lines: list[dict[str, Any]], total: int | None, step: int) -> float | None:
    """Seconds to the end, at the pace of the last lines of the log; a restart between them counts as slowness."""
    if total is None or len(lines) < 2:
        return None
    first, last = lines[0], lines[-1]
    steps, seconds = last["step"] - first["step"], last["time"] - first["time"]
    return round(max(total - step, 0) * seconds / steps, 1) if steps > 0 else None


def _seconds_per_line(lines: list[dict[str, Any]]) -> float | None:
    """The middle one of the times between the last lines of the log: a restart between two of them does not count."""
    times = [line["time"] for line in lines]
    gaps = [after - before for before, after in pairwise(times)]
    return round(median(gaps), 1) if gaps else None


def bottleneck(values: Mapping[str, float | None]) -> str:
    """Return what takes too much of the time, and what to do; or what the run computes; "": not known."""
    shares = {section: values.get(SHARE + section) or 0.0 for section in SECTIONS}
    if not any(shares.values()):
        return ""
    over = {name: shares[name] for name, (limit, *_) in LIMITS.items() if shares[name] > limit}
    if over:
        worst = max(over, key=lambda name: over[name])
        _, what, do = LIMITS[worst]
        return f"{what} {shares[worst]:.0%}: {do}"
    computing = sorted(COMPUTING, key=lambda name: -shares[name])
    told = ", ".join(f"{name} {shares[name]:.0%}" for name in computing if shares[name] >= 0.005)
    return f"computing {sum(shares[name] for name in COMPUTING):.0%}: {told}"
