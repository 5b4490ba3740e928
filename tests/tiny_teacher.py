"""A teacher of small shard sets: features of four fifths of their texts and images, as `cclm embed` stores them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import parquet

from cclm.data.ledger import text_hash
from cclm.retrieve.embed_source import Row, find_source

WIDTH = 24
"""Other than the tiny networks' 16."""


def knows(row: Row) -> bool:
    """Whether the teacher has a feature of a row."""
    return text_hash(row.text or row.key) % 5 != 0


def feature_of(name: str, width: int = WIDTH) -> NDArray[np.float32]:
    """A unit vector for a text, or for an image's key."""
    values = np.random.default_rng(text_hash(name) % 2**32).normal(size=width)
    return (values / np.linalg.norm(values)).astype(np.float32)


def write_teacher(folder: Path, sets: Sequence[Path], width: int = WIDTH) -> Path:
    """Write a folder of Parquet parts for each set."""
    for root in sets:
        source = find_source(root, with_captions=True)
        rows = [row for unit in range(len(source)) for row in source.rows(unit)]
        features = [feature_of(row.text or row.key, width) if knows(row) else None for row in rows]
        facts = {"source": source.fingerprint, "with_captions": True, "languages": [], "units_per_part": 100}
        place = folder / root.name
        place.mkdir(parents=True)
        (place / "_embedding.json").write_text(json.dumps({**facts, "num_units": len(source)}))
        columns = {"key": [row.key for row in rows], "text": [row.text for row in rows]}
        feature = pa.array(features, pa.list_(pa.float32(), width))
        parquet.write_table(pa.table({**columns, "feature": feature}), place / "part-00000000.parquet")
    return folder
