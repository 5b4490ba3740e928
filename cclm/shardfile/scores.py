"""Scores that a model gave to the pairs of a shard set (`cclm score`): what a build's filter reads. No torch.

    SCORES/part-00000000.parquet …   hash, label, score of each pair, unit by unit, or why it has no score
    SCORES/hashes.npy, scores.npy    all that have one, sorted by hash, to be mapped into memory
    SCORES/_scores.json              view; by label how many, and the score at each percentile; written last

A pair is found by its content: a caption by its image's key, language and text; a sentence pair by both texts and
languages. So a build of another recipe finds the scores, whatever order it gives the records, or the two sides.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from cclm.files import atomic
from cclm.files.reading import read_json
from cclm.rows.guard import mistaken, refuse
from cclm.types import TextPair, View

SUMMARY_NAME: Final = "_scores.json"
SCORE_FILES: Final = (SUMMARY_NAME, "hashes.npy", "scores.npy")
SCORE_SCHEMA: Final = pa.schema(
    {"hash": pa.uint64(), "label": pa.string(), "score": pa.float32(), "error": pa.string()}
)
PERCENTILES: Final = range(101)


def hash_of_caption(key: str, language: str, text: str) -> int:
    """64 bits that stand for an image's caption."""
    return _hash("caption", key, language, text)


def hash_of_pair(pair: TextPair) -> int:
    """64 bits that stand for a sentence pair, whichever side comes first."""
    sides = sorted(((pair.lang_a, pair.text_a), (pair.lang_b, pair.text_b)))
    return _hash("pair", *sides[0], *sides[1])


def label_of_pair(pair: TextPair) -> str:
    """Both languages in alphabetical order: "de-en"."""
    return "-".join(sorted((pair.lang_a, pair.lang_b)))


def _hash(*parts: str) -> int:
    content = json.dumps(parts).encode()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


@dataclass(frozen=True, kw_only=True)
class ScoreSummary:
    """The content of `_scores.json`."""

    view: str
    """image_text or text_pair."""
    languages: Mapping[str, Mapping[str, Any]]
    """By label: "count", and "percentiles", 101 scores (each one that a pair has)."""
    without: Mapping[str, int]
    """Pairs without a score, by reason (an image that cannot be read counts once, however many captions it has)."""


def finish_scores(folder: Path, view: View, parts: Iterable[Path]) -> ScoreSummary:
    """Write what builds read, out of all parts. It holds all scores in memory, some 50 bytes each.
    DataError: nothing has a score (reason no_scores)."""
    table = pa.concat_tables([SCORE_SCHEMA.empty_table(), *(parquet.read_table(path) for path in parts)])
    without = Counter(table["error"].drop_null().to_pylist())
    table = table.filter(table["score"].is_valid())
    if table.num_rows == 0:
        got = ", ".join(f"{reason} {count:,}" for reason, count in without.most_common()) or "an empty set"
        do = "Look at the set with `python -m shards verify`, or give another model or --dtype."
        refuse("no_scores", "a set of which some pairs can be scored", got, str(folder), do)
    hashes, first = np.unique(table["hash"].to_numpy(), return_index=True)
    scores, languages = table["score"].to_numpy(), {}
    labels = table.select(["label"]).unify_dictionaries()["label"].dictionary_encode().unify_dictionaries()
    number_of = np.concatenate([chunk.indices.to_numpy() for chunk in labels.chunks])
    for number, name in enumerate(labels.chunk(0).dictionary.to_pylist()):
        of_label = scores[number_of == number]
        percentiles = np.percentile(of_label, PERCENTILES, method="lower").tolist()
        languages[name] = {"count": len(of_label), "percentiles": percentiles}
    for name, values in zip(SCORE_FILES[1:], (hashes, scores[first]), strict=True):
        temporary = atomic.temporary_path(folder / name)
        with temporary.open("wb") as file:
            np.save(file, values)
        atomic.sync(temporary)
        atomic.publish(temporary, folder / name)
    summary = ScoreSummary(view=view.value, languages=languages, without=dict(without))
    text = json.dumps(asdict(summary), indent=1, sort_keys=True)
    atomic.replace_text(folder / SUMMARY_NAME, text + "\n", durable=True)
    return summary


class StoredScores:
    """The finished scores of a folder. ConfigError: there are none, or they are not finished."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        found = read_json(folder / SUMMARY_NAME, None)
        if found is None:
            do = "Run `cclm score SET --model FOLDER --to DIR` to its end first."
            mistaken("finished scores of `cclm score`", f"no {SUMMARY_NAME}", do, folder)
        self.summary = ScoreSummary(**found)

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
        return float(self.summary.languages[label]["percentiles"][percentile])
