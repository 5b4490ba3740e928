"""Made-up shard sets of a shipped recipe's shape: its views, image size and vocabulary, captions of real lengths."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

from cclm.shardfile.manifest import Manifest
from cclm.shardfile.schema import PAIR_SCHEMA
from cclm.shardfile.writer import ImageTextShardWriter, TextPairShardWriter
from cclm.types import ImageTextRecord, Region, TextPair, View

PICTURES = 32
"""Different ones; records share them, for only their size costs time."""
VOCABULARIES = {"xlm-roberta": 250_002, "": 32_000}
"""Part of the tokenizer's name → its size; any other tokenizer is taken to have the last."""
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
WORDS_MEAN, WORDS_SPREAD, WORDS_MOST = 13.5, 0.4, 60
"""Pieces of a caption without `<s>` and `</s>`, log-normal: Multi30K's under XLM-R's tokenizer (15.5 with them)."""


def vocabulary_size(tokenizer: str) -> int:
    """Return how many pieces stand in for the tokenizer that a recipe names."""
    return next(size for part, size in VOCABULARIES.items() if part in tokenizer)


def write_tokenizer(folder: Path, size: int) -> None:
    """Write a tokenizer of one piece a word."""
    folder.mkdir(parents=True)
    words = [*SPECIAL, *(f"w{number}" for number in range(size - len(SPECIAL)))]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))


class Sentences:
    """Random sentences of words of a vocabulary."""

    def __init__(self, vocabulary: int, seed: int = 0) -> None:
        self._generator, self._vocabulary = np.random.default_rng(seed), vocabulary - len(SPECIAL)

    def next(self) -> str:
        """Return one."""
        length = self._generator.lognormal(np.log(WORDS_MEAN) - WORDS_SPREAD**2 / 2, WORDS_SPREAD)
        words = self._generator.integers(self._vocabulary, size=int(np.clip(length, 3, WORDS_MOST)))
        return " ".join(f"w{word}" for word in words)


def write_images(folder: Path, count: int, size: int, sentences: Sentences, regions: int) -> None:
    """Write pictures of `size` pixels and a bit with a caption, and with so many regions each."""
    generator, side = np.random.default_rng(0), size + size // 8
    pictures = [_jpeg(generator, side) for _ in range(min(count, PICTURES))]
    with ImageTextShardWriter(folder, "images", 0) as writer:
        for number in range(count):
            boxes = [
                Region(box=(4.0 * index, 4.0 * index, side / 2, side / 2), captions={"en": [sentences.next()]})
                for index in range(regions)
            ]
            writer.add(
                ImageTextRecord(
                    key=f"p{number}", image=pictures[number % len(pictures)], image_format="jpg",
                    captions={"en": [sentences.next()]}, source="made-up", licence="CC0", regions=boxes,
                    identity=f"i{number}",
                )
            )  # fmt: skip
    assert writer.info is not None
    Manifest(view=View.IMAGE_TEXT, shards=(writer.info,)).save(folder)


def _jpeg(generator: np.random.Generator, side: int) -> bytes:
    """A picture of coarse noise: as long to decode as a photograph of its size."""
    coarse = generator.integers(0, 256, (max(2, side // 8), max(2, side // 8), 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def write_pairs(folder: Path, count: int, sentences: Sentences) -> None:
    """Write sentence pairs, a group each."""
    fields = {"lang_a": "en", "lang_b": "de", "source": "made-up"}
    pairs = [
        TextPair(text_a=sentences.next(), text_b=sentences.next(), group=f"g{number}", **fields)
        for number in range(count)
    ]
    with TextPairShardWriter(folder, "pairs", 0) as writer:
        writer.add_groups(pa.Table.from_pylist(list(map(vars, pairs)), PAIR_SCHEMA))
    assert writer.info is not None
    Manifest(view=View.TEXT_PAIR, shards=(writer.info,)).save(folder)


def write_corpus(folder: Path, settings: dict[str, Any], count: int) -> dict[str, Any]:
    """Write what a recipe's settings name, `count` records a set; return settings that read it, from random weights."""
    vocabulary = vocabulary_size(settings["data"]["tokenizer"])
    write_tokenizer(folder / "tokenizer", vocabulary)
    sentences = Sentences(vocabulary)
    views = {}
    for name, view in settings["views"].items():
        if name == "text_pair":
            write_pairs(folder / name, count, sentences)
        else:
            size = view["transform"]["size"] if "transform" in view else settings["model"]["vision"]["image_size"]
            write_images(folder / name, count, size, sentences, 5 if name == "regions" else 0)
        views[name] = {**view, "sources": {name: {"path": str(folder / name)}}}
    data = {**settings["data"], "tokenizer": str(folder / "tokenizer"), "num_workers": 0}
    return {**{key: value for key, value in settings.items() if key != "start"}, "views": views, "data": data}
