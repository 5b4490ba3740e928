"""Whether a row stands in its set: a pure function of the row, of the list of drops, and of the sampling rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cclm.shardfile.writer import starts_of_groups
from shards.chunks import RECORD, gather, order_of

DROP_SCHEMA: Final = pa.schema(
    [
        pa.field("order", pa.uint64()),
        pa.field("position", pa.uint64()),
        pa.field("reason", pa.string()),
        pa.field("other", pa.large_string()),
    ]
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


class Rules(NamedTuple):
    """What was decided about a set, as far as single units go."""

    drops: Sequence[Path]
    """Files of DROP_SCHEMA, sorted by order."""
    rates: Mapping[str, float]
    """Share that is kept, by label; a label that is not named is kept whole."""
    seed: bytes

    def drops_of(self, rows: Any, first: int, last: int) -> dict[int, Drop]:
        """Return, by position, the records among some rows that go.

        Args:
            rows: table with columns key, position, kind, label: all rows of a range of orders.
            first: lowest order of the range.
            last: highest one.
        """
        dropped: dict[int, Drop] = {}
        table = gather(self.drops, first, last, DROP_SCHEMA.names, DROP_SCHEMA)
        for row in table.to_pylist():
            drop = Drop(row["reason"], row["other"])
            known = dropped.get(row["position"])
            if known is None or (_BEFORE.index(drop.reason), drop.other) < (_BEFORE.index(known.reason), known.other):
                dropped[row["position"]] = drop
        if any(rate < 1 for rate in self.rates.values()):
            for row in rows.select(["key", "position", "kind", "label"]).to_pylist():
                if row["kind"] == RECORD and row["position"] not in dropped and not self._is_drawn(row):
                    dropped[row["position"]] = Drop(SAMPLED_OUT, "")
        return dropped

    def _is_drawn(self, row: Mapping[str, Any]) -> bool:
        """Draw by the key alone: the same records whatever the order of the corpus; a group's pairs of one label
        together."""
        rate = self.rates.get(row["label"], 1.0)
        return rate >= 1 or order_of(f"{row['label']}\0{row['key']}", b"sampling:" + self.seed) < rate * 2.0**64

    def survivors(self, rows: Any, first: int, last: int) -> Any:
        """Return the rows that stand in the set (arguments: `drops_of`)."""
        dropped = np.fromiter(self.drops_of(rows, first, last), dtype=np.uint64)
        is_record = pc.equal(rows["kind"], RECORD).to_numpy(zero_copy_only=False)
        stays = is_record & ~np.isin(rows["position"].to_numpy(), dropped)
        return rows.filter(pa.array(stays))


def starts_of_keys(rows: Any) -> Any:
    """Return at which of some sorted rows another key begins, as an array of row numbers."""
    return starts_of_groups(rows["key"])
