"""Tiny records and shard sets to read and to break."""

from __future__ import annotations

from pathlib import Path

from cclm.shardfile.manifest import Manifest
from cclm.types import ImageTextRecord, TextPair, View
from tests.shard_writers import ImageShards, write_groups

PNG_START, PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"


def image_record(number: int, key: str = "") -> ImageTextRecord:
    return ImageTextRecord(
        key=key or f"key-{number}",
        image=PNG_START + f"picture {number}".encode() * (1 + 40 * number) + PNG_END,
        image_format="png",
        captions={"en": [f"name {number}", "keyword"], "ja": [f"名前{number}"]},
        source=("noto", "twemoji")[number % 2],
        licence="MIT",
        identity=f"concept {number // 2}",
        ids={"codepoint": f"1f6{number:02d}"},
    )


def group(number: int) -> list[TextPair]:
    return [
        TextPair(
            text_a=f"name {number}",
            lang_a="en",
            text_b=f"{word}{number}",
            lang_b=lang,
            source="names",
            group=f"g{number}",
        )
        for lang, word in (("de", "Name "), ("zh", "名"), ("ar", "اسم "))[: 1 + number % 3]
    ]


def write_image_set(folder: Path, num_records: int = 5, max_samples: int = 3) -> Path:
    with ImageShards(folder, "image", max_samples=max_samples) as writer:
        for number in range(num_records):
            writer.add(image_record(number))
    Manifest(view=View.IMAGE_TEXT, shards=writer.shards, command="test").save(folder)
    return folder


def write_text_set(folder: Path, num_groups: int = 8) -> Path:
    groups = [group(number) for number in range(num_groups)]
    shards = write_groups(folder, "text", groups, pairs_per_block=4, max_samples=5, licences={"names": "CC0-1.0"})
    Manifest(view=View.TEXT_PAIR, shards=shards, command="test").save(folder)
    return folder
