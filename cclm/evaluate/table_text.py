"""Benchmark tables as text: for a terminal, Markdown, LaTeX, HTML, CSV and JSON."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final

from cclm.evaluate.benchmark_table import BenchmarkTable
from cclm.evaluate.published import AVERAGE, TableRow
from cclm.evaluate.results import ON_TEST
from cclm.evaluate.significance import Comparison
from cclm.files.text import FORMATS

KINDS: Final = (*FORMATS, "json")


def render(table: BenchmarkTable, kind: str) -> str:
    """Return a table in one of `KINDS`, its notes below; CSV has each number in a cell of its own, and no notes."""
    if kind == "json":
        return json.dumps(to_json(table), ensure_ascii=False, indent=1)
    head, rows = number_cells(table) if kind == "csv" else text_cells(table)
    return FORMATS[kind](head, rows, table.title) + below(notes(table), kind)


def below(lines: Sequence[str], kind: str) -> str:
    """Return sentences as they stand below a table."""
    if kind == "csv" or not lines:
        return ""
    if kind == "html":
        return "\n<ul>\n" + "\n".join(f"<li>{html.escape(line)}</li>" for line in lines) + "\n</ul>"
    before = {"markdown": "- ", "latex": "% "}.get(kind, "")
    return ("\n\n" if kind == "markdown" else "\n") + "\n".join(before + line for line in lines)


def text_cells(table: BenchmarkTable) -> tuple[list[str], list[list[str]]]:
    """Return head and rows for a format that people read: "61.20 ± 0.41 *"."""
    rows = [[row.title, *(_said(row, column) for column in table.columns)] for row in table.rows]
    return [table.task, *table.columns], rows


def _said(row: TableRow, column: str) -> str:
    cell = row.cells.get(column)
    if cell is None:
        return "–"
    comparison = row.comparisons.get(column)
    marks = " *" if comparison and comparison.is_significant else ""
    return f"{cell}{marks}{' §' if column == AVERAGE and row.missing else ''}"


def number_cells(table: BenchmarkTable) -> tuple[list[str], list[list[str]]]:
    """Return head and rows for a spreadsheet: every number in a cell of its own, at full precision."""
    facts = ("model", "protocol", "shots", "denominator", "reranked", "selected_on", "source", "is_verified")
    head = [*facts, *(name for column in table.columns for name in (column, f"{column}_deviation", f"{column}_seeds"))]
    rows = []
    for row in table.rows:
        numbers = list[str]()
        for column in table.columns:
            found = (getattr(row.cells.get(column), name, None) for name in ("mean", "deviation", "num_seeds"))
            numbers += ["" if number is None else repr(number) for number in found]
        rows.append([*(str(getattr(row, name)) for name in facts), *numbers])
    return head, rows


def notes(table: BenchmarkTable) -> list[str]:
    """Return the sentences that belong below a table: its marks, comparisons and sources."""
    lines = []
    if any(cell.num_seeds > 1 for row in table.rows for cell in row.cells.values()):
        lines.append("mean ± sample deviation over seeds")
    if any(row.comparisons for row in table.rows):
        lines.append(f"* differs from {table.baseline} (paired bootstrap over rows, p < 0.05)")
        lines += [f"{row.title}: {_compared(one, name)}" for row in table.rows for name, one in row.comparisons.items()]
    for row in table.rows:
        if row.missing:
            lines.append(f"§ {row.title}: the average leaves out {', '.join(row.missing)}")
        if row.unknown:
            counts = ", ".join(f"{language} {count:,}" for language, count in row.unknown.items())
            lines.append(f"{row.title}: wrong, because no right answer is in the list that is chosen from: {counts}")
    if any(row.selected_on == ON_TEST for row in table.rows):
        lines.append("‡ the checkpoint was selected on the test file, as the published few-shot runs were")
    if any(not row.is_verified for row in table.rows):
        lines.append("† not checked against its source")
    sources: dict[str, list[str]] = {}
    for row in table.rows:
        if row.source and row.model not in sources.setdefault(row.source, []):
            sources[row.source].append(row.model)
    return lines + [f"{', '.join(models)}: {source}" for source, models in sources.items()]


def _compared(comparison: Comparison, column: str) -> str:
    exact = "" if comparison.p_mcnemar is None else f", McNemar's exact p {comparison.p_mcnemar:.4f}"
    return (
        f"{column} {comparison.difference:+.2f} [{comparison.low:+.2f}, {comparison.high:+.2f}], "
        f"p {comparison.p_bootstrap:.4f}{exact}"
    )


def to_json(table: BenchmarkTable) -> dict[str, Any]:
    """Return all of a table as plain values."""
    return {**asdict(table), "title": table.title, "notes": notes(table)}
