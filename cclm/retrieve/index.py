"""Approximate search for sets above a million rows: a graph of neighbours (HNSW) by usearch, beside the embedded set.

    EMBEDDED/_usearch-image/ rows.usearch      built once, in a hidden folder, and renamed: it is whole or not there
                             facts.json        of which rows: a set that was embedded anew since is refused

Scores are exact cosines; only which rows are looked at is approximate. `benchmarks/search_index.py` measures what that
loses.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from cclm.errors import ConfigError
from cclm.files import atomic
from cclm.files.reading import read_json
from cclm.rows.guard import optional_library

Nearest: TypeAlias = Callable[[Tensor, int], tuple[Tensor, Tensor]]
"""(unit vectors (Q, W), k) → the largest cosines and their rows, (Q, k) each, best first; k is at most all rows."""
FACTS, ROWS = "facts.json", "rows.usearch"
NEIGHBOURS_PER_ROW = 16
"""Edges of a row in the graph (`connectivity`), as usearch has it by default."""
LOOKED_AT = 256
"""Rows on the way to an answer (`expansion_search`), if more are not asked for."""
LOOKED_AT_WHEN_ADDED = 128


def exact(feature_NW: Tensor) -> Nearest:
    """Return the search that looks at every row."""

    def nearest(query_QW: Tensor, number: int) -> tuple[Tensor, Tensor]:
        found = (query_QW @ feature_NW.T).topk(number, dim=1)
        return found.values, found.indices

    return nearest


def index_folder(embedded: Path, kind: str) -> Path:
    """Where the index of an embedded set's images or texts lies; readers of Parquet folders pass over it."""
    return embedded / f"_usearch-{kind}"


def approximate(folder: Path, feature_NW: Tensor, on_build: Callable[[Path], None] = lambda folder: None) -> Nearest:
    """Return the search in the index of these rows; it is built if it is not there (`on_build` is told before).

    Raises:
        ConfigError: the index is one of other rows, or damaged.
        MissingDependencyError: usearch is not installed.
    """
    library = optional_library(
        "usearch.index", "it searches without looking at all rows", "usearch", 'pip install "cclm-pretraining[index]"'
    )
    facts = _facts(feature_NW)
    if not folder.exists():
        on_build(folder)
        _build(library, folder, feature_NW, facts)
    index = _open(library, folder, facts)

    def nearest(query_QW: Tensor, number: int) -> tuple[Tensor, Tensor]:
        index.expansion_search = max(LOOKED_AT, 2 * number)
        cosines, rows = [], []
        for query_W in query_QW:
            row_K = torch.tensor(index.search(query_W.numpy(), number).keys.astype("int64"))
            if len(row_K) < min(number, len(feature_NW)):  # it may find fewer, among many equal rows
                row_K = (feature_NW @ query_W).topk(min(number, len(feature_NW))).indices
            cosine_K, order_K = (feature_NW[row_K] @ query_W).sort(descending=True, stable=True)
            cosines.append(cosine_K)
            rows.append(row_K[order_K])
        return torch.stack(cosines), torch.stack(rows)

    return nearest


def _facts(feature_NW: Tensor) -> dict[str, Any]:
    digest = hashlib.sha256(feature_NW.contiguous().numpy().data).hexdigest()  # without a copy
    return {"num_rows": feature_NW.shape[0], "width": feature_NW.shape[1], "rows": digest}


def _build(library: Any, folder: Path, feature_NW: Tensor, facts: dict[str, Any]) -> None:
    staging = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    staging.mkdir()
    try:
        index = library.Index(
            ndim=feature_NW.shape[1],
            metric="ip",  # of unit vectors: the cosine
            dtype="f32",
            connectivity=NEIGHBOURS_PER_ROW,
            expansion_add=LOOKED_AT_WHEN_ADDED,
        )
        index.add(torch.arange(len(feature_NW)).numpy(), feature_NW.numpy())
        index.save(str(staging / ROWS))
        (staging / FACTS).write_text(json.dumps(facts) + "\n", encoding="utf-8")
        for name in (ROWS, FACTS):
            atomic.sync(staging / name)
        atomic.publish(staging, folder)
    except FileExistsError:  # another process has built it meanwhile
        shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:
        shutil.rmtree(staging, ignore_errors=True)
        if error.errno != errno.ENOTEMPTY:
            raise
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def _open(library: Any, folder: Path, facts: dict[str, Any]) -> Any:
    do = "Remove this folder; the next search builds it anew."
    if read_json(folder / FACTS, None) != facts:
        expected, got = "an index of the rows of this embedded set", "one of other rows"
        raise ConfigError(where=str(folder), expected=expected, got=got, do=do)
    try:
        index = library.Index.restore(str(folder / ROWS), view=True)
    except (OSError, RuntimeError, ValueError, AttributeError) as error:
        got = " ".join(str(error).split())
        raise ConfigError(where=str(folder), expected="a whole index", got=got, do=do) from error
    if index is None or len(index) != facts["num_rows"]:
        raise ConfigError(where=str(folder), expected="a whole index", got="a part of one", do=do)
    return index
