"""What shard sets hold, by language, source and licence: as tables for people and as JSON for programs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from cclm.errors import ConfigError
from cclm.shardfile import schema
from cclm.shardfile.manifest import Manifest


def find_sets(folder: Path) -> list[Path]:
    """Return the shard sets at or directly below a folder, by name.

    Raises:
        ConfigError: there is none.
    """
    candidates = [folder, *sorted(folder.iterdir())] if folder.is_dir() else []
    sets = [path for path in candidates if (path / schema.MANIFEST_NAME).is_file()]
    if not sets:
        raise ConfigError(
            expected="a shard set, or a folder of shard sets (a set has a manifest.json)",
            got="none",
            do="Check the path, or let `python -m shards build` finish.",
            where=str(folder),
        )
    return sets


def statistics(folder: Path) -> dict[str, Any]:
    """Return the totals of every set below a folder, by set name, with the counts of refused records."""
    result: dict[str, Any] = {}
    for path in find_sets(folder):
        manifest = Manifest.load(path)
        refused = manifest.config.get("refused", {})
        result[path.name] = {"view": manifest.view.value, **asdict(manifest.totals), "refused": refused}
    return result


def print_statistics(result: Mapping[str, Any], console: Console) -> None:
    """Print one table of sizes, and one each by language, source and licence."""
    sizes = Table(title="shard sets")
    for column in ("set", "view", "shards", "samples", "texts or pairs", "MB", "refused"):
        sizes.add_column(column, justify="left" if column in ("set", "view") else "right")
    for name, entry in result.items():
        numbers = (entry["shards"], entry["samples"], entry["rows"])
        megabytes = f"{entry['size_bytes'] / 1e6:,.1f}"
        refused = sum(entry["refused"].values())
        sizes.add_row(name, entry["view"], *(f"{number:,}" for number in numbers), megabytes, f"{refused:,}")
    console.print(sizes)
    for field, title in (
        ("languages", "texts by language"),
        ("sources", "samples by source"),
        ("licences", "samples by licence"),
    ):
        _print_counts({name: entry[field] for name, entry in result.items()}, title, console)


def _print_counts(counts: Mapping[str, Mapping[str, int]], title: str, console: Console) -> None:
    table = Table(title=title)
    table.add_column(title.split()[-1])
    for name in counts:
        table.add_column(name, justify="right")
    for label in sorted({label for count in counts.values() for label in count}):
        table.add_row(label, *(f"{count[label]:,}" if label in count else "–" for count in counts.values()))
    console.print(table)
