"""What shard sets hold, by language, source, licence, length and size: tables for people, JSON for programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cclm.errors import ConfigError
from cclm.shardfile import schema
from cclm.shardfile.manifest import Manifest
from cclm.types import View
from shards.measure import class_name, measure_set, median_class


def find_sets(folders: Sequence[Path]) -> dict[str, Path]:
    """Return the shard sets at or directly below some folders, each once, by name: by path where two share a name.

    Raises:
        ConfigError: a folder without any.
    """
    found: dict[Path, Path] = {}
    for folder in folders:
        candidates = [folder, *sorted(folder.iterdir())] if folder.is_dir() else []
        sets = [path for path in candidates if (path / schema.MANIFEST_NAME).is_file()]
        if not sets:
            raise ConfigError(
                expected="a shard set, or a folder of shard sets (a set has a manifest.json)",
                got="none",
                do="Check the path, or let `python -m shards build` finish.",
                where=str(folder),
            )
        for path in sets:
            found.setdefault(path.resolve(), path)
    names = Counter(path.name for path in found)
    return {path.name if names[path.name] == 1 else str(shown): shown for path, shown in found.items()}


def statistics(folders: Sequence[Path], samples: int = 0) -> dict[str, Any]:
    """Return the totals of every set below some folders, by set name, with the counts of refused records and of rows
    in languages that were not wanted.

    Args:
        folders: sets, or folders of sets.
        samples: of so many samples of each set, evenly spread, lengths and sizes are measured (`measures`, see
            `measure_set`); 0: of none.
    """
    result: dict[str, Any] = {}
    for name, path in find_sets(folders).items():
        manifest = Manifest.load(path)
        result[name] = {"view": manifest.view.value, **asdict(manifest.totals)}
        result[name] |= {field: manifest.config.get(field, {}) for field in ("refused", "left_out")}
        result[name]["skipped"] = skipped_in(manifest) or {}
        result[name]["account"] = account(manifest)
        if samples:
            result[name]["measures"] = measure_set(path, samples)
    return result


def account(manifest: Manifest) -> str:
    """Return what became of everything that a build has read, as a sum; "" of a set that no build has written."""
    if not {"records_in", "refused"} <= manifest.config.keys():
        return ""
    refused = manifest.config["refused"]
    written = manifest.totals.rows if manifest.view is View.TEXT_PAIR else manifest.totals.samples
    reasons = ", ".join(f"{reason} {number:,}" for reason, number in refused.items())
    skipped = skipped_in(manifest)
    return (
        f"{manifest.config['records_in']:,} records in = {written:,} written + {sum(refused.values()):,} refused"
        f"{f' ({reasons})' if reasons else ''}"
        # A set of before they were counted says nothing of them.
        + ("" if skipped is None else f"; {sum(by_name(skipped).values()):,} rows in other languages skipped")
        + (f"; {left_out_in_words(left_out)}" if (left_out := manifest.config.get("left_out")) else "")
    )


def left_out_in_words(left_out: Mapping[str, Mapping[str, Any]]) -> str:
    """Return how many files under the paths of a corpus were not read, and of which kinds."""
    total = sum(kind["files"] for kind in left_out.values())
    kinds = (f"{why} {kind['files']:,}" if kind["files"] > 1 else why for why, kind in left_out.items())
    return f"left out: {total:,} file{'' if total == 1 else 's'} ({', '.join(kinds)})"


def skipped_in(manifest: Manifest) -> Mapping[str, Mapping[str, int]] | None:
    """Return the rows that a build has skipped, by source and language; None where a manifest says nothing of them."""
    skipped: Mapping[str, Mapping[str, int]] | None = manifest.config.get("skipped", manifest.config.get("passed_over"))
    return skipped


def by_name(skipped: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    """Return the rows by source and language in one count: "tatoeba fra"."""
    return {f"{source} {tag}": number for source, rows in skipped.items() for tag, number in rows.items()}


def print_statistics(result: Mapping[str, Any], console: Console) -> None:
    """Print one table of sizes, and one each by language, source and licence."""
    sizes = Table(title="shard sets")
    for column in ("set", "view", "shards", "samples", "texts or pairs", "MB", "refused"):
        sizes.add_column(column, justify="left" if column in ("set", "view") else "right")
    for name, entry in result.items():
        numbers = (entry["shards"], entry["samples"], entry["rows"])
        megabytes = f"{entry['size_bytes'] / 1e6:,.1f}"
        refused = sum(entry["refused"].values())
        sizes.add_row(Text(name), entry["view"], *(f"{number:,}" for number in numbers), megabytes, f"{refused:,}")
    console.print(sizes)
    for name, entry in result.items():
        if entry["account"]:
            console.print(f"{name}: {entry['account']}", markup=False, highlight=False, soft_wrap=True)
    for field, title in (
        ("languages", "texts by language"),
        ("sources", "samples by source"),
        ("licences", "samples by licence"),
    ):
        _print_counts({name: entry[field] for name, entry in result.items()}, title, console)
    skipped = {name: by_name(entry["skipped"]) for name, entry in result.items()}
    if any(skipped.values()):
        _print_counts(skipped, "rows skipped by source and language", console)
    for name, entry in result.items():
        if "measures" in entry:
            _print_measures(name, entry["measures"], console)


def _print_counts(counts: Mapping[str, Mapping[str, int]], title: str, console: Console) -> None:
    table = Table(title=title)
    table.add_column(title.split()[-1])
    for name in counts:
        table.add_column(Text(name), justify="right")
    for label in sorted({label for count in counts.values() for label in count}):
        table.add_row(Text(label), *(f"{count[label]:,}" if label in count else "–" for count in counts.values()))
    console.print(table)


def _print_measures(name: str, measures: Mapping[str, Any], console: Console) -> None:
    """Print each count in classes with a bar, and the middle class of the lengths by language."""
    counts = {field: count for field, count in measures.items() if field not in ("measured", "broken", "characters")}
    broken = "".join(f", {number:,} broken ({reason})" for reason, number in measures["broken"].items())
    table = Table(title=Text(f"{name}: {measures['measured']:,} samples measured{broken}"))
    for column in ("measure", "class", "samples", ""):
        table.add_column(column, justify="right" if column in ("class", "samples") else "left")
    for field, count in counts.items():
        longest = max(count.values())
        for number, (lower, samples) in enumerate(count.items()):
            bar = "█" * max(1, round(30 * samples / longest))
            table.add_row(field if number == 0 else "", class_name(lower), f"{samples:,}", bar)
    console.print(table)
    lengths = Table(title=Text(f"{name}: characters of a text"))
    for column in ("language", "texts", "middle", "longest"):
        lengths.add_column(column, justify="left" if column == "language" else "right")
    for language, count in measures["characters"].items():
        words = class_name(median_class(count)), class_name(max(count))
        lengths.add_row(Text(language), f"{sum(count.values()):,}", *words)
    console.print(lengths)
