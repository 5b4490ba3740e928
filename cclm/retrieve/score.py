"""`cclm score`: how well the two views of each pair of a shard set fit, by a model's own features.

    shard set ─ images and captions, or sentences ─ dual encoder ─▶ cosine of each pair ─▶ parts ─▶ SCORES

A build reads them, as `cclm.shardfile.scores` says (`filters.model_scores`, `filters.min_score_percentile`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from pyarrow import parquet

from cclm.files import atomic
from cclm.retrieve.embed import Embedder, EmbeddingFacts, part_path, prepare_folder
from cclm.retrieve.embed_source import Shards
from cclm.shardfile.scores import SCORE_SCHEMA, hash_of_caption, hash_of_pair, label_of_pair
from cclm.types import TextPair, View

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
    """Make the parts that are missing; return all of them.

    Raises:
        ConfigError: the folder holds the scores of another model or set.
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
    """Return the scores of the captions of some images; what cannot be read or has no token has none."""
    records = [source.record(unit) for unit in units]
    image_NE, broken = embedder.images([partial(source.image, unit) for unit in units])
    captions = [
        (number, language, text)
        for number, record in enumerate(records)
        for language, texts in record.captions.items()
        for text in texts
    ]
    text_ME, unread = embedder.texts([text for _, _, text in captions])
    score_M = (image_NE[[number for number, _, _ in captions]] * text_ME).sum(-1).tolist()
    return [
        {"hash": hash_of_caption(records[number].key, language, text), "label": language, "score": score}
        for (number, language, text), score, error in zip(captions, score_M, unread, strict=True)
        if error is None and broken[number] is None
    ]


def score_pairs(embedder: Embedder, source: Shards, units: range) -> list[Scored]:
    """Return the scores of the pairs of some groups; each text is encoded once."""
    pairs: list[TextPair] = [pair for unit in units for pair in source.pairs(unit)]
    place = {text: number for number, text in enumerate(dict.fromkeys(text for pair in pairs for text in both(pair)))}
    text_NE, unread = embedder.texts(list(place))
    first_M, second_M = (torch.tensor([place[both(pair)[side]] for pair in pairs]) for side in (0, 1))
    score_M = (text_NE[first_M] * text_NE[second_M]).sum(-1).tolist()
    return [
        {"hash": hash_of_pair(pair), "label": label_of_pair(pair), "score": score}
        for pair, score in zip(pairs, score_M, strict=True)
        if all(unread[place[text]] is None for text in both(pair))
    ]


def both(pair: TextPair) -> tuple[str, str]:
    """The two texts of a pair."""
    return pair.text_a, pair.text_b
