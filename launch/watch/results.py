"""What came out of a sweep: one row for each point, in the words of `launch status`."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cclm.errors import ConfigError
from cclm.files.reading import read_json
from cclm.files.text import table
from cclm.run.progress import last_values
from launch.plan.recipe import dotted
from launch.plan.sweep import point_folder, read_sweep
from launch.watch.runs import is_run
from launch.watch.status import UNKNOWN, look_at

RESULTS_NAME = "results.json"  # cclm.report.facts, which needs more than the standard library


@dataclass(frozen=True, kw_only=True)
class Row:
    """One point."""

    point: int
    overrides: Mapping[str, Any]
    state: str
    step: int
    total_steps: int | None
    loss: float | None
    """Of the last line of the log."""
    metrics: Mapping[str, float | None]
    reason: str
    """Of a point that does not go on by itself: what the launcher wrote about its last attempt."""


def read_rows(folder: Path, metrics: Sequence[str]) -> list[Row]:
    """Read every point of a sweep. `metrics`: names in log.jsonl, or dotted paths in results.json. Raise ConfigError
    if this is no sweep, or no point has a metric although some have numbers."""
    own = [name for name in metrics if name not in ("loss", "step")]
    points = read_sweep(folder).points
    folders = [point_folder(folder, number) for number in range(len(points))]
    runs, unreadable, _ = look_at([run for run in folders if is_run(run)])
    found = {now.run_folder: now for now in runs}
    rows, known = [], set()
    for number, (run, overrides) in enumerate(zip(folders, points, strict=True)):
        values = {**_numbers(run / RESULTS_NAME), **last_values(run)}
        known |= set(values)
        now = found.get(run)
        if now is None:
            state, reason = ("unreadable", unreadable[run]) if run in unreadable else ("not begun", "")
        elif now.state == UNKNOWN:
            state, reason = UNKNOWN, now.reason
        else:
            state, reason = now.phase, "" if now.progress.is_done or now.may_go_on else now.last_word
        rows.append(
            Row(
                point=number,
                overrides=overrides,
                state=state,
                step=now.progress.step if now else 0,
                total_steps=now.progress.total_steps if now else None,
                loss=now.progress.loss if now else None,
                metrics={name: values.get(name) for name in own},
                reason=reason,
            )
        )
    absent = [name for name in own if known and name not in known]
    if absent:
        some = f"some of {', '.join(sorted(known))}"
        raise ConfigError(where="--metric", expected=some, got=", ".join(absent), do="Check the name.")
    return rows


def _numbers(path: Path) -> dict[str, float]:
    """Every number of a file with nested mappings, by its dotted path."""
    found = read_json(path, {}, kind=object)  # maybe another program's
    values = dotted(found) if isinstance(found, dict) else {}
    return {name: float(value) for name, value in values.items() if type(value) in (int, float)}


def sort_rows(rows: Sequence[Row], name: str, *, descending: bool = False) -> list[Row]:
    """Sort by a column of numbers; rows without a number come last."""

    def key(row: Row) -> tuple[bool, float]:
        number = {"step": row.step, "loss": row.loss, **row.metrics}[name]
        if number is None or math.isnan(number):
            return True, 0.0
        return False, -number if descending else number

    return sorted(rows, key=key)


def to_json(rows: Sequence[Row]) -> str:
    """Return a JSON list."""
    return json.dumps([asdict(row) for row in rows], indent=2, ensure_ascii=False) + "\n"


def to_csv(rows: Sequence[Row]) -> str:
    """Return comma-separated values, numbers in full."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    keys, metrics = _columns(rows)
    writer.writerow(["point", *keys, "state", "step", "total_steps", "loss", *metrics])
    for row in rows:
        given = [row.overrides.get(key) for key in keys]
        numbers = [row.metrics[name] for name in metrics]
        writer.writerow([row.point, *given, row.state, row.step, row.total_steps, row.loss, *numbers])
    return text.getvalue()


def to_text(rows: Sequence[Row]) -> str:
    """Return a table for people."""
    keys, metrics = _columns(rows)
    lines = []
    for row in rows:
        given = [_short(row.overrides[key]) if key in row.overrides else "" for key in keys]
        step = f"{row.step}/{row.total_steps}" if row.total_steps else str(row.step)
        numbers = [_short(number) for number in (row.loss, *row.metrics.values())]
        lines.append([str(row.point), *given, row.state, step, *numbers])
    right = ("point", "step", "loss", *metrics)
    reasons = [f"point {row.point}: {row.reason}" for row in rows if row.reason]
    return "\n".join([table(["point", *keys, "state", "step", "loss", *metrics], lines, right=right), *reasons]) + "\n"


def _columns(rows: Sequence[Row]) -> tuple[list[str], list[str]]:
    """Keys that the points override, and metrics, each in the order in which they first come."""
    keys = dict.fromkeys(key for row in rows for key in row.overrides)
    return list(keys), list(rows[0].metrics) if rows else []


def _short(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.5g}" if isinstance(value, float) else str(value)
