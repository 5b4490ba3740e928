"""Whether a row stands in its set: a pure function of the row, of the drops that were found, and of the rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cclm.types import View
from shards.chunks import (
    IMAGE_CHUNK_SCHEMA,
    LAST_ORDER,
    RECORD,
    TEXT_CHUNK_SCHEMA,
    gather,
    list_chunks,
    order_of,
    sort_rows,
    write_sorted,
)
from shards.recipe import SetRecipe

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
        return sort_rows(gather(paths, self.first, self.last, columns or schema.names, schema))

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
