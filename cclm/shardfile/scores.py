"""Scores that a model gave to the pairs of a shard set (`cclm score`): what a build's filter reads. No torch.

    SCORES/part-00000000.parquet …   hash, label, score of each pair, unit by unit; made again where a kill left a gap
    SCORES/hashes.npy, scores.npy    all of them, sorted by hash, to be mapped into memory
    SCORES/_scores.json              by label: how many, and the score at each percentile; written last

A pair is found by its content: a caption by its image's key, language and text; a sentence pair by both texts and
languages. So a build of another recipe finds the scores, whatever order it gives the records.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from cclm.errors import ConfigError
from cclm.files import atomic
from cclm.files.reading import read_json
from cclm.types import TextPair

SUMMARY_NAME: Final = "_scores.json"
SCORE_FILES: Final = (SUMMARY_NAME, "hashes.npy", "scores.npy")
SCORE_SCHEMA: Final = pa.schema({"hash": pa.uint64(), "label": pa.string(), "score": pa.float32()})
PERCENTILES: Final = range(101)


def hash_of_caption(key: str, language: str, text: str) -> int:
    """64 bits that stand for an image's caption."""
    return _hash("caption", key, language, text)


def hash_of_pair(pair: TextPair) -> int:
    """64 bits that stand for a sentence pair."""
    return _hash("pair", pair.lang_a, pair.text_a, pair.lang_b, pair.text_b)


def label_of_pair(pair: TextPair) -> str:
    """Both languages in alphabetical order: "de-en"."""
    return "-".join(sorted((pair.lang_a, pair.lang_b)))


def _hash(*parts: str) -> int:
    content = "\0".join(parts).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def finish_scores(folder: Path, parts: Iterable[Path]) -> Mapping[str, Mapping[str, Any]]:
    """Write what builds read, out of all parts; return the summary by label. It holds all scores: 20 bytes each."""
    table = pa.concat_tables([SCORE_SCHEMA.empty_table(), *(parquet.read_table(path) for path in parts)])
    hashes, first = np.unique(table["hash"].to_numpy(), return_index=True)
    labels = table["label"].combine_chunks().dictionary_encode()
    number_of, names = labels.indices.to_numpy(), labels.dictionary.to_pylist()
    scores = table["score"].to_numpy()
    summary = {
        name: {
            "count": int((number_of == number).sum()),
            "percentiles": np.percentile(scores[number_of == number], PERCENTILES).tolist(),
        }
        for number, name in enumerate(names)
    }
    for name, values in zip(SCORE_FILES[1:], (hashes, scores[first]), strict=True):
        temporary = atomic.temporary_path(folder / name)
        with temporary.open("wb") as file:
            np.save(file, values)
        atomic.sync(temporary)
        atomic.publish(temporary, folder / name)
    atomic.replace_text(folder / SUMMARY_NAME, json.dumps(summary, indent=1, sort_keys=True) + "\n", durable=True)
    return summary


class StoredScores:
    """The finished scores of a folder.

    Raises:
        ConfigError: there are none, or they are not finished.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.summary = read_json(folder / SUMMARY_NAME, None)
        if self.summary is None:
            raise ConfigError(
                where=str(folder),
                expected="finished scores of `cclm score`",
                got=f"no {SUMMARY_NAME}",
                do="Run `cclm score SET --model FOLDER --to DIR` to its end first.",
            )

    @cached_property
    def _hashes(self) -> Any:
        return np.load(self.folder / SCORE_FILES[1], mmap_mode="r")

    @cached_property
    def _scores(self) -> Any:
        return np.load(self.folder / SCORE_FILES[2], mmap_mode="r")

    def score(self, content_hash: int) -> float | None:
        """The score of a pair, or None if it has none."""
        wanted = np.uint64(content_hash)
        place = int(np.searchsorted(self._hashes, wanted))
        if place == len(self._hashes) or self._hashes[place] != wanted:
            return None
        return float(self._scores[place])

    def at_percentile(self, label: str, percentile: int) -> float:
        """The score below which so many of a hundred of the label's pairs lie."""
        return float(self.summary[label]["percentiles"][percentile])
