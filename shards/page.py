"""Pages of one file that need nothing else: statistics as plots, samples as they are."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from cclm.data.decoding import image_size
from cclm.files.shipped import open_template
from cclm.languages import is_right_to_left
from cclm.shardfile.reader import ShardSet
from cclm.types import ImageTextRecord, TextPair, View
from shards.stats import COUNTS, SKIPPED, by_name, class_name, spread

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
