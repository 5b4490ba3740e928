"""Second step of a build: which of the units that were read stand in the set, and where each shard begins.

    chunks --by key-->  the same key again           --.
    chunks --by code--> duplicates, near-duplicates  --+--> DROPS/*.arrow --> counts by label --> rates --> bounds

Each arrow works on one range of hashes at a time, so memory holds about BUCKET_ROWS rows whatever the set's size, and
ranges may be given to many processes. A record goes if one that stands before it in the set (by the hash of the key,
not by the order of the corpus) is like it: nothing is carried from one range to the next, so any split gives the same
answer. Whether a row stands in its set is a pure function of the row, of the drops that were found, and of the rates.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from operator import itemgetter
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cclm.files.atomic import replace_bytes
from cclm.shardfile.codec import canonical_json
from cclm.shardfile.writer import starts_of_groups
from cclm.types import View
from shards.chunks import (
    CODE_SCHEMA,
    IMAGE_CHUNK_SCHEMA,
    LAST_ORDER,
    RECORD,
    ROW_ORDER,
    TEXT_CHUNK_SCHEMA,
    ChunkName,
    chunk_facts,
    gather,
    list_chunks,
    mapped,
    order_of,
    write_sorted,
)
from shards.recipe import SamplingSettings, SetRecipe
from shards.sketch import similar
from shards.workers import RunJobs

DROP_SCHEMA: Final = pa.schema(
    [("order", pa.uint64()), ("position", pa.uint64()), ("reason", pa.string()), ("other", pa.large_string())]
)
"""A unit that goes because of others; `other` is the key of the one that stays."""

KEY_TWICE, GROUP_MIXED = "key_twice", "group_mixed"
DUPLICATE, NEAR_DUPLICATE, SAMPLED_OUT = "duplicate", "near_duplicate", "sampled_out"
_BEFORE: Final = (KEY_TWICE, GROUP_MIXED, DUPLICATE, NEAR_DUPLICATE)
"""A unit that goes for several reasons goes for the first of these."""

_STAGES: Final = {KEY_TWICE: "make", GROUP_MIXED: "make", SAMPLED_OUT: "sampling"}
_MESSAGES: Final = {
    KEY_TWICE: "expected each key once in a set, got {key!r} again",
    GROUP_MIXED: "expected pairs of one group to share text_a and lang_a, got another sentence in group {key!r}",
    DUPLICATE: "expected content that no other record has, got that of {other!r}",
    NEAR_DUPLICATE: "expected content unlike that of other records, got nearly that of {other!r}",
    SAMPLED_OUT: "expected the share of {label!r} that sampling keeps, got one more",
}
BUCKET_ROWS: Final = 1 << 20
"""Rows of one range of keys; a range of codes has a quarter, because what meets there is compared in Python."""
MAX_LEADERS: Final = 256
"""Records of one code that later ones are compared with; more are unlike each other, and their code says little."""


class Drop(NamedTuple):
    """Why a unit goes."""

    reason: str
    other: str

    def line(self, key: str, source: str, label: str) -> dict[str, Any]:
        """Return the fields of its line in quarantine."""
        message = _MESSAGES[self.reason].format(key=key, other=self.other, label=label)
        stage = _STAGES.get(self.reason, "duplicates")
        return {"key": key, "source": source, "stage": stage, "reason": self.reason, "message": f"{key}: {message}."}


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """A range of hashes of a set, what was read of it, and what was decided about it so far."""

    chunks: Path
    drops: Path
    """Folder of files of DROP_SCHEMA, sorted by order."""
    recipe: SetRecipe
    seed: bytes
    name: str = ""
    """Of the file of drops that looking at this range gives; "exact-…" and "near-…" say which sketch."""
    first: int = 0
    last: int = LAST_ORDER
    rates: Mapping[str, float] = field(default_factory=dict)
    """Share that is kept, by label; a label that is not named is kept whole."""

    def rows(self, columns: Sequence[str] = ()) -> Any:
        """Return the rows of every chunk in this range of orders, sorted; no columns: all."""
        schema = IMAGE_CHUNK_SCHEMA if self.recipe.view is View.IMAGE_TEXT else TEXT_CHUNK_SCHEMA
        paths = [name.path(self.chunks) for name in list_chunks(self.chunks)]
        return gather(paths, self.first, self.last, columns or schema.names, schema).sort_by(ROW_ORDER)

    def judged(self, rows: Any) -> tuple[Any, dict[int, Drop]]:
        """Return which of some rows of this range (with key, position, kind, label) stand in the set, an array of bool,
        and why records go, by position."""
        dropped: dict[int, Drop] = {}
        paths = sorted(self.drops.glob("*.arrow"))
        for row in gather(paths, self.first, self.last, DROP_SCHEMA.names, DROP_SCHEMA).to_pylist():
            drop = Drop(row["reason"], row["other"])
            known = dropped.get(row["position"])
            if known is None or (_BEFORE.index(drop.reason), drop.other) < (_BEFORE.index(known.reason), known.other):
                dropped[row["position"]] = drop
        if any(rate < 1 for rate in self.rates.values()):
            for row in rows.select(["key", "position", "kind", "label"]).to_pylist():
                if row["kind"] == RECORD and row["position"] not in dropped and not self._is_drawn(row):
                    dropped[row["position"]] = Drop(SAMPLED_OUT, "")
        is_record = pc.equal(rows["kind"], RECORD).to_numpy(zero_copy_only=False)
        is_dropped = np.isin(rows["position"].to_numpy(), np.fromiter(dropped, dtype=np.uint64))
        return is_record & ~is_dropped, dropped

    def _is_drawn(self, row: Mapping[str, Any]) -> bool:
        """Draw by the key alone: the same records whatever the order of the corpus; a group's pairs of one label
        together."""
        rate = self.rates.get(row["label"], 1.0)
        return rate >= 1 or order_of(f"{row['label']}\0{row['key']}", b"sampling:" + self.seed) < rate * 2.0**64

    def survivors(self) -> Any:
        """Return the sorted rows (order, key, position, kind, label) that stand in the set."""
        rows = self.rows(["order", "key", "position", "kind", "label"])
        return rows.filter(pa.array(self.judged(rows)[0]))

    @property
    def found(self) -> Path:
        """The file of the drops that looking at this range gives."""
        return self.drops / f"{self.name}.arrow"

    def save(self, drops: Sequence[Mapping[str, Any]]) -> None:
        """Write them."""
        table = pa.Table.from_pylist(sorted(drops, key=lambda drop: (drop["order"], drop["position"])), DROP_SCHEMA)
        write_sorted(self.found, table)


def decide(path: Path, whole: Bucket, run: RunJobs) -> tuple[list[tuple[int, str]], dict[str, float]]:
    """Decide about everything that was read, or return what `path` keeps from before a kill.

    Returns:
        (order, key) of the first record of each shard, nothing if no record is left; label -> share that is kept.
    """
    if path.exists():
        fields = json.loads(path.read_bytes())
        return [(order, key) for order, key in fields["starts"]], fields["rates"]
    recipe = whole.recipe
    num_rows = sum(chunk_facts(name.path(whole.chunks)).get("units", 0) for name in list_chunks(whole.chunks))
    by_key = _buckets(whole, "keys", num_rows)
    _find(run, find_keys_again, by_key)
    for sketch, is_wanted, codes_each in (
        ("exact", recipe.duplicates.exact, 1),
        ("near", recipe.duplicates.near, 16 if recipe.view is View.TEXT_PAIR else recipe.duplicates.distance + 1),
    ):
        if is_wanted:
            _find(run, find_duplicates, _buckets(whole, sketch, 4 * num_rows * codes_each))
    rates: dict[str, float] = {}
    if recipe.sampling != SamplingSettings():
        labels: Counter[str] = Counter()
        for _, counts in run(count_labels, by_key):
            labels.update(counts)
        rates = sampling_rates(labels, recipe.sampling)
    starts = _starts(run, [replace(bucket, rates=rates) for bucket in by_key], recipe.num_shards)
    replace_bytes(path, canonical_json({"starts": starts, "rates": rates}), durable=True)
    return starts, rates


def _buckets(whole: Bucket, prefix: str, rows: int) -> list[Bucket]:
    """Return ranges of about BUCKET_ROWS rows each."""
    count = max(1, -(-rows // BUCKET_ROWS))
    bounds = pairwise((LAST_ORDER + 1) * number // count for number in range(count + 1))
    return [
        replace(whole, name=f"{prefix}-{number:05d}", first=start, last=stop - 1)
        for number, (start, stop) in enumerate(bounds)
    ]


def _find(run: RunJobs, function: Callable[[Bucket], None], buckets: Sequence[Bucket]) -> None:
    for _ in run(function, [bucket for bucket in buckets if not bucket.found.exists()]):
        pass


def find_keys_again(bucket: Bucket) -> None:
    """Write the drops of keys that come again (images), and of pairs that do not fit their group (text)."""
    is_text = bucket.recipe.view is View.TEXT_PAIR
    sentence = ["text_a", "lang_a"] if is_text else []
    rows = bucket.rows(["order", "key", "position", "kind", *sentence])
    rows = rows.filter(pc.equal(rows["kind"], RECORD))
    starts = starts_of_groups(rows["key"])
    first_of = np.repeat(starts, np.diff(np.r_[starts, rows.num_rows]))
    if is_text:
        fits = np.ones(rows.num_rows, dtype=bool)
        for column in sentence:
            values = rows[column].combine_chunks()
            fits &= pc.equal(values, values.take(pa.array(first_of))).to_numpy(zero_copy_only=False)
        again, reason = np.flatnonzero(~fits), GROUP_MIXED
    else:
        again, reason = np.flatnonzero(first_of != np.arange(rows.num_rows)), KEY_TWICE
    found = rows.take(pa.array(again)).select(["order", "position", "key"]).rename_columns({"key": "other"}).to_pylist()
    bucket.save([row | {"reason": reason} for row in found])


def find_duplicates(bucket: Bucket) -> None:
    """Write the drops of records of this range of codes that are like one that stands before them."""
    sketch = bucket.name.split("-")[0]
    names = list_chunks(bucket.chunks)
    tables = [
        gather([name.path(bucket.chunks, sketch)], bucket.first, bucket.last, CODE_SCHEMA.names, CODE_SCHEMA)
        for name in names
    ]
    chunk = np.repeat(np.arange(len(tables)), np.array([table.num_rows for table in tables], dtype=int))
    code, row = (column.to_numpy() for column in pa.concat_tables([CODE_SCHEMA.empty_table(), *tables]).columns)
    places = np.argsort(code, kind="stable")
    starts = np.flatnonzero(np.r_[True, code[places][1:] != code[places][:-1]]) if len(places) else places
    lengths = np.diff(np.r_[starts, len(places)])
    members = places[np.repeat(lengths > 1, lengths)]
    by_key = gather(sorted(bucket.drops.glob("keys-*.arrow")), 0, LAST_ORDER, ["position"], DROP_SCHEMA)
    known = set(by_key["position"].to_pylist())
    table = _members(bucket, names, chunk[members], row[members], sketch)
    drops: list[dict[str, Any]] = []
    start = 0
    for length in lengths[lengths > 1]:
        alive = [item for item in table[start : start + length] if item["position"] not in known]
        drops += _followers(sorted(alive, key=itemgetter("order", "key", "position")), bucket.recipe, sketch)
        start += length
    bucket.save(list({drop["position"]: drop for drop in reversed(drops)}.values()))


def _members(bucket: Bucket, names: Sequence[ChunkName], chunk: Any, row: Any, sketch: str) -> list[dict[str, Any]]:
    """Return order, key, position and signature of some rows of some chunks, in the order given."""
    found: list[dict[str, Any]] = [{}] * len(chunk)
    for number in np.unique(chunk):
        wanted = np.flatnonzero(chunk == number)
        with mapped(names[number].path(bucket.chunks)) as table:
            part = table.select(["order", "key", "position", sketch]).take(pa.array(row[wanted]))
            items = part.rename_columns({sketch: "signature"}).to_pylist()
        for place, item in zip(wanted, items, strict=True):
            found[place] = item
    return found


def _followers(items: Sequence[dict[str, Any]], recipe: SetRecipe, sketch: str) -> Iterator[dict[str, Any]]:
    """Yield the drops among records that share a code, given in the order of the set: those like one before them."""
    leaders: list[dict[str, Any]] = []
    signatures = np.zeros((0, 0), dtype=np.uint8)
    for item in items:
        if leaders:
            alike = similar(signatures, item["signature"], recipe.duplicates, exact=sketch == "exact")
            if alike.any():
                other = leaders[int(np.argmax(alike))]
                reason = DUPLICATE if sketch == "exact" else NEAR_DUPLICATE
                yield {"order": item["order"], "position": item["position"], "reason": reason, "other": other["key"]}
                continue
        if len(leaders) < MAX_LEADERS:
            leaders.append(item)
            one = np.frombuffer(item["signature"], dtype=np.uint8)[None]
            signatures = one if len(leaders) == 1 else np.concatenate((signatures, one))


def sampling_rates(labels: Mapping[str, int], settings: SamplingSettings) -> dict[str, float]:
    """Return the share of each label's records that is kept: min(1, c · n ** (1 / temperature - 1)).

    Without a number of records, c keeps the smallest label whole. With one, c is found by bisection, so that the
    kept records add up to it.
    """
    power = 1 / settings.temperature - 1
    if not labels:
        return {}

    def rates(factor: float) -> dict[str, float]:
        return {label: min(1.0, factor * float(count) ** power) for label, count in sorted(labels.items())}

    if settings.records is None:
        return rates(min(labels.values()) ** -power)
    low, high = 0.0, max(labels.values()) ** -power
    for _ in range(100):
        middle = (low + high) / 2
        kept = sum(labels[label] * rate for label, rate in rates(middle).items())
        low, high = (middle, high) if kept <= settings.records else (low, middle)
    return rates(high)


def count_labels(bucket: Bucket) -> Counter[str]:
    """Return the records of a range by label, as far as they have not been dropped."""
    return Counter(bucket.survivors()["label"].to_pylist())


def count_keys(bucket: Bucket) -> int:
    """Return how many samples (images, groups) of a range stand in the set."""
    return len(starts_of_groups(bucket.survivors()["key"]))


def _starts(run: RunJobs, buckets: Sequence[Bucket], num_shards: int) -> list[tuple[int, str]]:
    """Return where each shard begins, so that their numbers of samples differ by one at most."""
    counts = {bucket.name: count for bucket, count in run(count_keys, buckets)}
    total = sum(counts.values())
    shards = min(num_shards, total)
    ranks = [total * shard // shards for shard in range(shards)]
    starts, before = [], 0
    for bucket in buckets:
        inside = [rank - before for rank in ranks if before <= rank < before + counts[bucket.name]]
        before += counts[bucket.name]
        if inside:
            rows = bucket.survivors()
            at = rows.take(pa.array(starts_of_groups(rows["key"])[inside]))
            starts += list(zip(at["order"].to_pylist(), at["key"].to_pylist(), strict=True))
    return starts
