"""What shard sets hold, by language, source, licence, length and size: tables for people, JSON for programs, and pages
of one file that need nothing else.
"""

from __future__ import annotations

import base64
import bisect
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median_low
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cclm.data.decoding import image_size
from cclm.errors import DataError
from cclm.files.shipped import open_template
from cclm.files.text import visible
from cclm.languages import is_right_to_left
from cclm.rows.guard import mistaken
from cclm.shardfile import schema
from cclm.shardfile.manifest import Manifest
from cclm.shardfile.reader import ShardSet
from cclm.types import ImageTextRecord, TextPair, View
from shards.sketch import SourceImage

COUNTS: Final = {
    "languages": "texts by language",
    "sources": "samples by source",
    "licences": "samples by licence",
}
"""Counts of a set's totals, and what they are called."""
SKIPPED: Final = "rows skipped by source and language"
_MIME: Final = {"jpg": "image/jpeg", "png": "image/png", "webp": "image/webp"}
MOST_BARS: Final = 40
TEMPLATES: Final = Path(__file__).parent / "templates"
_MEASURES: Final = {
    "short_side": "shorter side in pixels",
    "aspect_percent": "longer side in percent of the shorter",
    "file_bytes": "bytes of an image",
    "captions": "captions of an image",
    "pairs": "pairs of a group",
}


def find_sets(folders: Sequence[Path]) -> dict[str, Path]:
    """Return the shard sets at or directly below some folders, each once, by name: by path where two share a name.
    ConfigError: a folder without any."""
    found: dict[Path, Path] = {}
    for folder in folders:
        candidates = [folder, *sorted(folder.iterdir())] if folder.is_dir() else []
        sets = [path for path in candidates if (path / schema.MANIFEST_NAME).is_file()]
        if not sets:
            expected = "a shard set, or a folder of shard sets (a set has a manifest.json)"
            mistaken(expected, "none", "Check the path, or let `python -m shards build` finish.", folder)
        for path in sets:
            found.setdefault(path.resolve(), path)
    names = Counter(path.name for path in found)
    return {path.name if names[path.name] == 1 else str(shown): shown for path, shown in found.items()}


def statistics(folders: Sequence[Path], samples: int = 0) -> dict[str, Any]:
    """Return the totals of every set below some folders, by set name, with the counts of refused records and of rows
    in languages that were not wanted; of `samples` of each set, lengths and sizes (`measures`, see `measure_set`)."""
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


def spread(samples_per_shard: list[int], most: int) -> Iterator[tuple[int, int]]:
    """Yield (shard, sample) of at most `most` samples, evenly spread over a set."""
    ends = list(itertools.accumulate(samples_per_shard))
    total = ends[-1] if ends else 0
    wanted = min(most, total)
    for position in (total * number // wanted for number in range(wanted)):
        shard = bisect.bisect_right(ends, position)
        yield shard, position - ends[shard] + samples_per_shard[shard]


def class_of(value: int) -> int:
    """Return the lower bound of the class that a number belongs to: 0, 1, 2, 4, 8, …"""
    return 1 << (value.bit_length() - 1) if value > 0 else 0


def class_name(lower: int) -> str:
    """Return a class in words."""
    return f"{lower}" if lower < 2 else f"{lower:,}-{2 * lower - 1:,}"


def measure_set(folder: Path, most: int) -> dict[str, Any]:
    """Measure at most `most` samples of a set.

    Returns:
        `measured`: how many; `broken`: how many of them could not be read, by reason; `characters`: language -> class
        -> texts; for image sets `short_side`, `file_bytes`, `aspect_percent` (longer by shorter side) and `captions`,
        for text sets `pairs`: class -> samples. Classes are named by their lower bound.
    """
    shards = ShardSet(folder)
    counts: dict[str, Counter[int]] = {}
    characters: dict[str, Counter[int]] = {}
    broken: Counter[str] = Counter()
    measured = 0
    for shard, sample in spread(shards.samples_per_shard, most):
        measured += 1
        try:
            numbers, texts = _look_at(shards, shard, sample)
        except DataError as error:
            broken[error.reason] += 1
            continue
        for name, number in numbers.items():
            counts.setdefault(name, Counter())[class_of(number)] += 1
        for language, text in texts:
            characters.setdefault(language, Counter())[class_of(len(text))] += 1
    shards.close()
    return {
        "measured": measured,
        "broken": dict(sorted(broken.items())),
        "characters": {language: dict(sorted(count.items())) for language, count in sorted(characters.items())},
        **{name: dict(sorted(count.items())) for name, count in counts.items()},
    }


def _look_at(shards: ShardSet, shard: int, sample: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return a sample's numbers by name, and its texts with their languages."""
    if shards.view is View.TEXT_PAIR:
        pairs = shards.text_group(shard, sample)
        texts = [(pairs[0].lang_a, pairs[0].text_a), *((pair.lang_b, pair.text_b) for pair in pairs)]
        return {"pairs": len(pairs)}, texts
    record = shards.image_text(shard, sample)
    shorter, longer = sorted(SourceImage(record.image, f"record {record.key!r}").size)
    texts = [(language, text) for language, of_one in record.captions.items() for text in of_one]
    numbers = {
        "short_side": shorter,
        "aspect_percent": round(100 * longer / max(shorter, 1)),
        "file_bytes": len(record.image),
        "captions": len(texts),
    }
    return numbers, texts


def print_statistics(result: Mapping[str, Any], console: Console) -> None:
    """Print one table of sizes, and one each by language, source and licence."""
    sizes = _table("shard sets", ["set", "view"], ["shards", "samples", "texts or pairs", "MB", "refused"])
    for name, entry in result.items():
        numbers = (entry["shards"], entry["samples"], entry["rows"])
        megabytes = f"{entry['size_bytes'] / 1e6:,.1f}"
        refused = sum(entry["refused"].values())
        sizes.add_row(Text(name), entry["view"], *(f"{number:,}" for number in numbers), megabytes, f"{refused:,}")
    console.print(sizes)
    for name, entry in result.items():
        if entry["account"]:
            console.out(f"{name}: {visible(entry['account'])}")
    for field, title in COUNTS.items():
        _print_counts({name: entry[field] for name, entry in result.items()}, title, console)
    skipped = {name: by_name(entry["skipped"]) for name, entry in result.items()}
    if any(skipped.values()):
        _print_counts(skipped, SKIPPED, console)
    for name, entry in result.items():
        if "measures" in entry:
            _print_measures(name, entry["measures"], console)


def _table(title: str, names: Sequence[str], numbers: Iterable[str]) -> Table:
    table = Table(title=Text(title))
    for column in names:
        table.add_column(Text(column))
    for column in numbers:
        table.add_column(Text(column), justify="right")
    return table


def _print_counts(counts: Mapping[str, Mapping[str, int]], title: str, console: Console) -> None:
    table = _table(title, [title.split()[-1]], counts)
    for label in sorted({label for count in counts.values() for label in count}):
        table.add_row(
            Text(visible(label)), *(f"{count[label]:,}" if label in count else "–" for count in counts.values())
        )
    console.print(table)


def _print_measures(name: str, measures: Mapping[str, Any], console: Console) -> None:
    """Print each count in classes with a bar, and the middle class of the lengths by language."""
    counts = {field: count for field, count in measures.items() if field not in ("measured", "broken", "characters")}
    broken = "".join(f", {number:,} broken ({reason})" for reason, number in measures["broken"].items())
    title = f"{name}: {measures['measured']:,} samples measured{broken}"
    table = _table(title, ["measure"], ["class", "samples"])
    table.add_column()
    for field, count in counts.items():
        longest = max(count.values())
        for number, (lower, samples) in enumerate(count.items()):
            bar = "█" * max(1, round(30 * samples / longest))
            table.add_row(field if number == 0 else "", class_name(lower), f"{samples:,}", bar)
    console.print(table)
    lengths = _table(f"{name}: characters of a text", ["language"], ["texts", "middle", "longest"])
    for language, count in measures["characters"].items():
        middle = median_low(Counter(count).elements())
        lengths.add_row(Text(visible(language)), f"{sum(count.values()):,}", class_name(middle), class_name(max(count)))
    console.print(lengths)


def direction(language: str) -> str:
    """Return the `dir` attribute for texts of a language: what it is known for, else as its first letter has it."""
    return "rtl" if is_right_to_left(language) else "auto"


def _bars(counts: Mapping[Any, int], *, are_classes: bool = False) -> list[tuple[str, int, float]]:
    """Return (label, count, share of the longest bar): classes in their order, names by size, MOST_BARS of them."""
    items = sorted(counts.items(), key=lambda item: item[0] if are_classes else (-item[1], item[0]))[:MOST_BARS]
    longest = max((count for _, count in items), default=1)
    return [(class_name(int(name)) if are_classes else str(name), count, count / longest) for name, count in items]


def statistics_page(result: Mapping[str, Any]) -> str:
    """Return the plots of `shards.stats.statistics` as an HTML page."""
    sets = []
    for name, entry in result.items():
        by_title = {title: entry[field] for field, title in COUNTS.items()}
        by_title |= {"refused records by reason": entry["refused"], SKIPPED: by_name(entry["skipped"])}
        plots = [(title, _bars(counts)) for title, counts in by_title.items() if counts]
        measures = entry.get("measures", {})
        classes = {title: measures[field] for field, title in _MEASURES.items() if field in measures}
        classes |= {f"characters of a text: {tag}": count for tag, count in measures.get("characters", {}).items()}
        plots += [(title, _bars(counts, are_classes=True)) for title, counts in classes.items()]
        sets.append({"name": name, "entry": entry, "plots": plots})
    return str(open_template(TEMPLATES / "stats.html.j2", html=True).render(sets=sets))


def preview_page(folders: Mapping[str, Path], most: int) -> str:
    """Return a page of at most `most` samples of each set: images with boxes and captions, pairs side by side."""
    sets = []
    for name, folder in folders.items():
        shards = ShardSet(folder)
        images: list[dict[str, Any]] = []
        groups: list[tuple[str, list[TextPair]]] = []
        for shard, sample in spread(shards.samples_per_shard, most):
            place = shards.locate(shard, sample)
            where = f"{place.tar}, {place.key}"
            if shards.view is View.IMAGE_TEXT:
                images.append(_shown(shards.image_text(shard, sample), where))
            else:
                groups.append((where, shards.text_group(shard, sample)))
        shards.close()
        sets.append({"name": name, "totals": shards.manifest.totals, "images": images, "groups": groups})
    return str(open_template(TEMPLATES / "preview.html.j2", html=True).render(sets=sets, direction=direction))


def _shown(record: ImageTextRecord, where: str) -> dict[str, Any]:
    width, height = image_size(record.image, where)
    source = f"data:{_MIME[record.image_format]};base64,{base64.b64encode(record.image).decode('ascii')}"
    return {"record": record, "where": where, "source": source, "width": width, "height": height}
