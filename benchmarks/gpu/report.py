"""What the parts have found, as one JSON document and one page."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.gpu.parts import CHECKOUT, Outcome

TABLES = {
    "rates": "What the machine can do",
    "recipes": "Shipped recipes on one GPU",
    "towers": "By tower, alone, forward and backward",
    "kernels": "Kernels, forward and backward",
    "waits": "Where a step waits for the GPU",
    "machine": "Machine",
    "versions": "Versions",
}
"""Tables in the order of the page."""


def write_report(out: Path, outcomes: Sequence[Outcome], *, is_dry: bool) -> None:
    """Write `gpu.json` and `gpu.md`, whole each time: who ends the check has what was found until then."""
    document = {
        "format_version": 1,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "commit": commit(),
        "dry_run": is_dry,
        "parts": [asdict(outcome) for outcome in outcomes],
    }
    (out / "gpu.json").write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (out / "gpu.md").write_text("\n".join(page(document)) + "\n", encoding="utf-8")


def commit() -> str:
    """Return the checkout's commit, "" where it has none."""
    command = ["git", "-C", str(CHECKOUT), "rev-parse", "--short=12", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=False).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def page(document: Mapping[str, Any]) -> Iterable[str]:
    """Yield the lines of the page."""
    lines = [(part["name"], line) for part in document["parts"] for line in part["lines"]]
    rows = [(name, line["table"], line["cells"]) for name, line in lines if line["kind"] == "row"]
    machine = next((cells for _, table, cells in rows if table == "machine"), {})
    where = (
        "**a dry run on the CPU: no number here means anything**" if document["dry_run"] else machine.get("gpu", "?")
    )
    yield f"# On a GPU: {where}"
    yield ""
    yield f"`python -m benchmarks.gpu`, {document['date']}, commit {document['commit'] or 'unknown'}."
    yield ""
    checks = [line for _, line in lines if line["kind"] == "check"]
    parts = [
        {
            "part": part["name"], "status": part["status"], "seconds": round(part["seconds"]),
            "checks": sum(line["kind"] == "check" for line in part["lines"]), "reason": part["reason"],
        }
        for part in document["parts"]
    ]  # fmt: skip
    yield from table("Parts", parts)
    wrong = [{name: line[name] for name in ("name", "found", "allowed")} for line in checks if not line["holds"]]
    yield from table("Checks that do not hold", wrong)
    closest = sorted(checks, key=lambda line: -(line["found"] or 0.0) / (line["allowed"] or 1.0))
    near = [{"check": line["name"], "found": line["found"], "allowed": line["allowed"]} for line in closest[:8]]
    yield from table(f"Checks: {len(checks)}, of which these came closest to their bound", near)
    for name, title in TABLES.items():
        yield from table(title, [cells for _, table_name, cells in rows if table_name == name])
    notes = [f"- {name}: {line['text']}" for name, line in lines if line["kind"] == "note"]
    yield from ["## Notes", "", *notes, ""] if notes else []


def table(title: str, rows: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    """Yield a Markdown table with every column that a row has; nothing without rows."""
    if not rows:
        return
    columns = list(dict.fromkeys(name for row in rows for name in row))
    yield from (f"## {title}", "", "| " + " | ".join(columns) + " |", "|" + "---|" * len(columns))
    for row in rows:
        yield "| " + " | ".join(cell(row.get(name)) for name in columns) + " |"
    yield ""


def cell(value: object) -> str:
    """Return a value as a cell shows it."""
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return "" if value is None else str(value).replace("|", "/")
