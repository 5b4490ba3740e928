"""How features are kept: all components or the first few, in fp32, fp16 or int8; and what that costs.

    feature (E floats, a unit vector) ─ first w, made a unit vector again ─ rounded ─▶ Parquet ─▶ unit vector (w floats)

A row in int8 is round(127 x / max |x|). Its scale need not be stored: what it stands for is a unit vector, so the scale
is one over the row's length.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from cclm.errors import ConfigError

STORES: Mapping[str, type[np.generic]] = {"fp32": np.float32, "fp16": np.float16, "int8": np.int8}
MOST_SAMPLED = 20_000
"""Rows whose features are remembered, to measure what storing them costs."""
NUM_NEIGHBOURS = 10
NUM_QUERIES = 1000


@dataclass(frozen=True, kw_only=True)
class Storage:
    """Width and type of stored features."""

    width: int
    """Components that are kept."""
    store: str = "fp32"
    """One of `STORES`."""

    def is_all_of(self, full_width: int) -> bool:
        """Whether nothing of features so wide is lost."""
        return self.store == "fp32" and self.width == full_width

    def cut(self, feature_NE: Tensor) -> Tensor:
        """Return the kept components as unit vectors; features of this width are returned as they are."""
        return feature_NE if feature_NE.shape[1] == self.width else _unit(feature_NE[:, : self.width])

    def pack(self, feature_NE: Tensor) -> NDArray[Any]:
        """Return what is stored of features, (N, w)."""
        kept_NW = self.cut(feature_NE)
        if self.store == "int8":
            kept_NW = (kept_NW * (127.0 / kept_NW.abs().amax(1, keepdim=True).clamp_min(1e-12))).round()
        return kept_NW.numpy().astype(STORES[self.store])

    def unpack(self, stored_NW: NDArray[Any]) -> Tensor:
        """Return the unit vectors that stored values stand for, (N, w), float32."""
        values_NW = torch.tensor(stored_NW, dtype=torch.float32)
        return values_NW if self.store == "fp32" else _unit(values_NW)


def storage_of(width: int, store: str, full_width: int) -> Storage:
    """Return how the features of a model are to be stored; `width` 0: all components (ConfigError: no such type, or
    more components than the model gives).
    """
    if store not in STORES:
        raise ConfigError(where="--store", expected=", ".join(STORES), got=repr(store), do="Choose one of these.")
    if not 0 <= width <= full_width:
        raise ConfigError(
            where="--width",
            expected=f"1 to {full_width}, the width of the model's features",
            got=str(width),
            do="Give a smaller one; those it was trained for (objectives.matryoshka_widths) lose least.",
        )
    return Storage(width=width or full_width, store=store)


def _unit(values_NW: Tensor) -> Tensor:
    return functional.normalize(values_NW, dim=-1)


@dataclass
class StorageCost:
    """Remembers features as the model gives them, and measures what a storage loses: search in full against search in
    what is stored, among the rows that it has seen."""

    storage: Storage
    rows: list[Mapping[str, Any]] = field(default_factory=list)

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Remember rows with `unit`, `kind` and `feature`, up to a number."""
        known = [row for row in rows if row["feature"] is not None]
        self.rows += known[: MOST_SAMPLED - len(self.rows)]

    def measured(self) -> Iterator[tuple[str, float, float]]:
        """Yield (what, share now, share in full) of what the rows allow to measure."""
        images, texts = self._of("image"), self._of("text")
        for kind, (_, feature_NE) in (("image", images), ("text", texts)):
            if len(feature_NE) > NUM_NEIGHBOURS:
                yield f"nearest {NUM_NEIGHBOURS} {kind}s of {kind}s kept", self.neighbours_kept(feature_NE), 1.0
        units, feature_NE = images
        row_of_unit = {unit: row for row, unit in enumerate(units)}
        with_image = [row for row, unit in enumerate(texts[0]) if unit in row_of_unit]
        if with_image and len(feature_NE) > NUM_NEIGHBOURS:
            query_QE = texts[1][with_image]
            right_Q = torch.tensor([row_of_unit[texts[0][row]] for row in with_image])
            now, full = (self._found(query_QE, feature_NE, right_Q, is_full) for is_full in (False, True))
            yield f"text → image R@{NUM_NEIGHBOURS}", now, full

    def neighbours_kept(self, feature_NE: Tensor) -> float:
        """Return the share of each row's nearest others that are still among its nearest, as `search` finds them."""
        step = -(-len(feature_NE) // NUM_QUERIES)
        query_Q = torch.arange(0, len(feature_NE), step)
        best = []
        for is_full in (True, False):
            cosine_QN = self._cosines(feature_NE[query_Q], feature_NE, is_full)
            cosine_QN[torch.arange(len(query_Q)), query_Q] = -torch.inf  # itself
            best.append(cosine_QN.topk(NUM_NEIGHBOURS, dim=1).indices)
        return float((best[0][:, :, None] == best[1][:, None, :]).any(2).float().mean())

    def _found(self, query_QE: Tensor, feature_NE: Tensor, right_Q: Tensor, is_full: bool) -> float:
        """Share of queries that find their image; an equal cosine counts against it."""
        found = []
        for part_Q in torch.split(torch.arange(len(query_QE)), NUM_QUERIES):
            cosine_QN = self._cosines(query_QE[part_Q], feature_NE, is_full)
            right_Q1 = cosine_QN.gather(1, right_Q[part_Q, None])
            found.append((cosine_QN >= right_Q1).sum(1) <= NUM_NEIGHBOURS)
        return float(torch.cat(found).float().mean())

    def _cosines(self, query_QE: Tensor, feature_NE: Tensor, is_full: bool) -> Tensor:
        if is_full:
            return query_QE @ feature_NE.T
        return self.storage.cut(query_QE) @ self.storage.unpack(self.storage.pack(feature_NE)).T

    def _of(self, kind: str) -> tuple[list[int], Tensor]:
        rows = [row for row in self.rows if row["kind"] == kind]
        features = [torch.as_tensor(row["feature"]) for row in rows]
        return [row["unit"] for row in rows], torch.stack(features) if features else torch.zeros(0, self.storage.width)
