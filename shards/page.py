"""Pages of one file that need nothing else: statistics as plots, samples as they are."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cclm.data.decoding import image_size
from cclm.files.shipped import open_template
from cclm.languages import is_right_to_left
from cclm.shardfile.reader import ShardSet
from cclm.types import ImageTextRecord, Region, TextPair, View
from shards.measure import class_name, spread
from shards.stats import by_name

_MIME: Final = {"jpg": "image/jpeg", "png": "image/png", "webp": "image/webp"}
MOST_BARS: Final = 40
TEMPLATES: Final = Path(__file__).parent / "templates"


def direction(language: str) -> str:
    """Return the `dir` attribute for texts of a language: what it is known for, else as its first letter has it."""
    return "rtl" if is_right_to_left(language) else "auto"


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One bar of a plot."""

    label: str
    count: int
    share: float
    """Of the longest bar."""


def bars_of(counts: Mapping[Any, int], *, are_classes: bool = False) -> list[Bar]:
    """Return the bars of a count: classes in their order, names by size, at most MOST_BARS of them."""
    items = sorted(counts.items(), key=lambda item: item[0] if are_classes else (-item[1], item[0]))[:MOST_BARS]
    longest = max((count for _, count in items), default=1)
    return [
        Bar(label=class_name(int(name)) if are_classes else str(name), count=count, share=count / longest)
        for name, count in items
    ]


def statistics_page(result: Mapping[str, Any]) -> str:
    """Return the plots of `shards.stats.statistics` as an HTML page."""
    sets = []
    for name, entry in result.items():
        plots = [(title, bars_of(entry[field])) for field, title in _BY_NAME.items() if entry[field]]
        if entry["skipped"]:
            plots.append(("rows skipped by source and language", bars_of(by_name(entry["skipped"]))))
        measures = entry.get("measures", {})
        classes = [(field, title) for field, title in _BY_CLASS.items() if field in measures]
        plots += [(title, bars_of(measures[field], are_classes=True)) for field, title in classes]
        for language, count in measures.get("characters", {}).items():
            plots.append((f"characters of a text: {language}", bars_of(count, are_classes=True)))
        sets.append({"name": name, "entry": entry, "plots": plots})
    return str(open_template(TEMPLATES / "stats.html.j2", html=True).render(sets=sets))


_BY_NAME: Final = {
    "languages": "texts by language",
    "sources": "samples by source",
    "licences": "samples by licence",
    "refused": "refused records by reason",
}
_BY_CLASS: Final = {
    "short_side": "shorter side in pixels",
    "aspect_percent": "longer side in percent of the shorter",
    "file_bytes": "bytes of an image",
    "captions": "captions of an image",
    "pairs": "pairs of a group",
}


@dataclass(frozen=True, kw_only=True)
class ShownImage:
    """An image on the page."""

    record: ImageTextRecord
    where: str
    source: str
    """A data: URL."""
    width: int
    height: int


def preview_page(folders: Mapping[str, Path], most: int) -> str:
    """Return a page of at most `most` samples of each set: images with boxes and captions, pairs side by side.

    Raises:
        DataError: a sample that cannot be read.
    """
    sets = []
    for name, folder in folders.items():
        shards = ShardSet(folder)
        places = list(spread(shards.samples_per_shard, most))
        images: list[ShownImage] = []
        groups: list[tuple[str, list[TextPair]]] = []
        for shard, sample in places:
            place = shards.locate(shard, sample)
            where = f"{place.tar}, {place.key}"
            if shards.view is View.IMAGE_TEXT:
                images.append(_shown(shards.image_text(shard, sample), where))
            else:
                groups.append((where, shards.text_group(shard, sample)))
        shards.close()
        sets.append({"name": name, "totals": shards.manifest.totals, "images": images, "groups": groups})
    page = open_template(TEMPLATES / "preview.html.j2", html=True)
    return str(page.render(sets=sets, first_caption=_first_caption, direction=direction))


def _shown(record: ImageTextRecord, where: str) -> ShownImage:
    width, height = image_size(record.image, where)
    data = base64.b64encode(record.image).decode("ascii")
    source = f"data:{_MIME[record.image_format]};base64,{data}"
    return ShownImage(record=record, where=where, source=source, width=width, height=height)


def _first_caption(region: Region) -> tuple[str, str]:
    language, texts = next(iter(region.captions.items()))
    return language, texts[0]
