"""`cclm score`: how well the two views of each pair of a shard set fit, by a model's own features.

    shard set ─ images and captions, or sentences ─ dual encoder ─▶ cosine of each pair ─▶ parts ─▶ SCORES

A build reads them, as `cclm.shardfile.scores` says (`filters.model_scores`, `filters.min_score_percentile`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from cclm.errors import DataError
from cclm.files import atomic
from cclm.retrieve.embed import Embedder, EmbeddingFacts, part_path, prepare_folder
from cclm.retrieve.embed_source import NOT_THERE, Shards
from cclm.shardfile.scores import SCORE_SCHEMA, hash_of_caption, hash_of_pair, label_of_pair
from cclm.types import ImageTextRecord, TextPair, View

FACTS_NAME = "_scoring.json"
Scored = dict[str, Any]


def score_set(
    embedder: Embedder,
    source: Shards,
    folder: Path,
    facts: EmbeddingFacts,
    *,
    on_unit: Callable[[int], None] = lambda unit: None,
) -> list[Path]:
    """Make the parts that are missing; return all of them (ConfigError: the folder holds the scores of another model or
    set).
    """
    score = score_images if source.view is View.IMAGE_TEXT else score_pairs
    for part in prepare_folder(folder, facts, FACTS_NAME):
        start = part * facts.units_per_part
        rows: list[Scored] = []
        for first in range(start, min(start + facts.units_per_part, facts.num_units), embedder.batch_size):
            last = min(first + embedder.batch_size, start + facts.units_per_part, facts.num_units)
            rows += score(embedder, source, range(first, last))
            on_unit(last - 1)
        path = part_path(folder, part)
        temporary = atomic.temporary_path(path)
        parquet.write_table(pa.Table.from_pylist(rows, SCORE_SCHEMA), temporary, compression="zstd")
        atomic.sync(temporary)
        atomic.publish(temporary, path)
    return [part_path(folder, part) for part in range(facts.num_parts)]


def score_images(embedder: Embedder, source: Shards, units: range) -> list[Scored]:
    """Return the scores of the captions of some images, or why they have none."""
    records: list[ImageTextRecord] = []
    rows = readable(units, lambda unit: records.append(source.record(unit)))
    image_NE, broken = embedder.images([partial(bytes, record.image) for record in records])
    rows += [without(error.partition(":")[0]) for error in broken if error is not None]
    captions = [
        (number, language, text)
        for number, record in enumerate(records)
        if broken[number] is None
        for language, texts in record.captions.items()
        for text in texts
    ]
    text_ME, unread = embedder.texts([text for _, _, text in captions])
    score_M = (image_NE[[number for number, _, _ in captions]] * text_ME).sum(-1).tolist()
    return rows + [
        scored(hash_of_caption(records[number].key, language, text), language, score, error)
        for (number, language, text), score, error in zip(captions, score_M, unread, strict=True)
    ]


def score_pairs(embedder: Embedder, source: Shards, units: range) -> list[Scored]:
    """Return the scores of the pairs of some groups, or why they have none; each text is encoded once."""
    pairs: list[TextPair] = []
    rows = readable(units, lambda unit: pairs.extend(source.pairs(unit)))
    place = {text: number for number, text in enumerate(dict.fromkeys(text for pair in pairs for text in both(pair)))}
    text_NE, unread = embedder.texts(list(place))
    first_M, second_M = ([place[both(pair)[side]] for pair in pairs] for side in (0, 1))
    score_M = (text_NE[first_M] * text_NE[second_M]).sum(-1).tolist()
    return rows + [
        scored(hash_of_pair(pair), label_of_pair(pair), score, unread[first] or unread[second])
        for pair, score, first, second in zip(pairs, score_M, first_M, second_M, strict=True)
    ]


def readable(units: range, read: Callable[[int], object]) -> list[Scored]:
    """Read some units; return a row for each that cannot be read."""
    rows = []
    for unit in units:
        try:
            read(unit)
        except DataError as error:
            if error.reason in NOT_THERE:
                raise
            rows.append(without(error.reason))
    return rows


def scored(content_hash: int, label: str, score: float, error: str | None) -> Scored:
    """Return the row of a pair."""
    if error is None and not isfinite(score):
        error = "score_not_finite"
    return {"hash": content_hash, "label": label, "score": score} if error is None else without(error.partition(":")[0])


def without(reason: str) -> Scored:
    """Return the row of what has no score."""
    return {"error": reason}


def both(pair: TextPair) -> tuple[str, str]:
    """The two texts of a pair."""
    return pair.text_a, pair.text_b
