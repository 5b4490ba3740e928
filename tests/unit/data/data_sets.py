"""Small real shard sets and a small real tokenizer."""

from __future__ import annotations

import io
import string
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

from cclm.shardfile.manifest import Manifest, ShardInfo
from cclm.types import ImageTextRecord, Region, TextPair, View
from tests.shard_writers import ImageShards, write_groups

WORDS = [first + second for first in "abcdefgh" for second in string.ascii_lowercase]


def png(number: int, size: int = 12) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (size, size, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def save_manifest(folder: Path, view: View, shards: list[ShardInfo]) -> None:
    Manifest(view=view, shards=tuple(shards)).save(folder)


@contextmanager
def careless_writer() -> Iterator[None]:
    """Our writer refuses a file without its end; another one might not."""
    with patch("cclm.shardfile.codec.check_image"):
        yield


def write_images(
    folder: Path,
    count: int,
    first: int = 0,
    per_shard: int = 10,
    broken: set[int] | None = None,
    truncated: set[int] | None = None,
) -> Path:
    with careless_writer(), ImageShards(folder, "images", max_samples=per_shard) as writer:
        for number in range(first, first + count):
            image = png(number)
            if number in (broken or set()):
                # the right length, start and end, but no picture: only the decoder can tell
                image = image[:40] + bytes(len(image) - 60) + image[-20:]
            if number in (truncated or set()):
                image = image[: len(image) // 2]
            captions = {"en": [f"{WORDS[number]} {WORDS[number + 1]} aa", WORDS[number]], "de": [f"ab {WORDS[number]}"]}
            writer.add(
                ImageTextRecord(
                    key=f"k{number}",
                    image=image,
                    image_format="png",
                    captions=captions,
                    source="artist",
                    licence="MIT",
                    identity=f"concept{number % 50}",
                )
            )
        shards = writer.close()
    save_manifest(folder, View.IMAGE_TEXT, shards)
    return folder


def write_region_images(folder: Path, count: int, per_shard: int = 10, size: int = 24, without: int = -1) -> Path:
    """Pictures with one to four regions each, some with an attribute; number `without` has none."""
    with ImageShards(folder, "regions", max_samples=per_shard) as writer:
        for number in range(count):
            regions = [
                Region(
                    box=(2.0 * index, 3.0 * index, 8.0 + index, 9.0),
                    captions={"en": [f"{WORDS[number]} {WORDS[index]}"], "de": [WORDS[index]]},
                    attributes={"en": ["ga"], "de": ["gb"]} if index % 2 else {},
                )
                for index in range(0 if number == without else 1 + number % 4)
            ]
            writer.add(
                ImageTextRecord(
                    key=f"r{number}",
                    image=png(number, size),
                    image_format="png",
                    captions={"en": [f"{WORDS[number]} aa"], "de": [f"ab {WORDS[number]}"]},
                    source="boxes",
                    licence="MIT",
                    regions=regions,
                )
            )
        shards = writer.close()
    save_manifest(folder, View.IMAGE_TEXT, shards)
    return folder


def write_pairs(folder: Path, count: int, per_shard: int = 15) -> Path:
    groups = []
    for number in range(count):
        texts = [f"{WORDS[number]} {WORDS[(number * 7 + index) % 200]}" for index in range(1 + number % 5)]
        fields = {"text_a": WORDS[number], "lang_a": "en", "lang_b": "xx", "source": "corpus", "group": f"g{number}"}
        groups.append([TextPair(text_b=text, **fields) for text in texts])
    save_manifest(folder, View.TEXT_PAIR, write_groups(folder, "pairs", groups, 12, per_shard))
    return folder


def make_tokenizer() -> Tokenizer:
    vocabulary = {token: index for index, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", *WORDS, "<mask>"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer
