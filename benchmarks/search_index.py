"""What `cclm search --index usearch` loses and gains against the search that looks at every row.

    python -m benchmarks.search_index [--rows 200000] [--width 64] [--queries 500] [--threads 1] [--json PATH]

Unit vectors of two kinds: directions without any order (the hardest case: all rows are about equally far from a query),
and clustered ones, as features of images are: `rows / 50` centres, each row near one of them. Queries are drawn as rows
are. `recall@k`: the share of the exact best k that the index finds. `search`: the median time of an exact search of
one query, by that in the index (above 1: the index is faster). `build`: the time to build the index, in exact searches
of one query.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.figures import add_json_option, write_figures
from cclm.retrieve.index import Nearest, approximate, exact, index_folder

BEST = 10
ROWS_PER_CENTRE = 50
SPREAD = 0.7
"""Length of what a row adds to its centre, which has length 1."""


def rows_of(kind: str, number: int, width: int, centres_CW: Tensor, generator: torch.Generator) -> Tensor:
    """Return unit vectors, (N, W)."""
    noise_NW = functional.normalize(torch.randn(number, width, generator=generator), dim=1)
    if kind == "random":
        return noise_NW
    chosen_N = torch.randint(len(centres_CW), (number,), generator=generator)
    return functional.normalize(centres_CW[chosen_N] + SPREAD * noise_NW, dim=1)


def timed(nearest: Nearest, query_QW: Tensor) -> tuple[Tensor, float]:
    """Return the rows found for each query, one query at a time, and the median time of one."""
    found, times = [], []
    for query_W in query_QW:
        began = time.perf_counter()
        found.append(nearest(query_W[None], BEST)[1][0])
        times.append(time.perf_counter() - began)
    return torch.stack(found), statistics.median(times)


def measure(kind: str, num_rows: int, width: int, num_queries: int) -> dict[str, float]:
    """Return the figures of one kind of rows."""
    generator = torch.Generator().manual_seed(0)
    centres_CW = rows_of("random", max(1, num_rows // ROWS_PER_CENTRE), width, torch.empty(0), generator)
    row_NW = rows_of(kind, num_rows, width, centres_CW, generator)
    query_QW = rows_of(kind, num_queries, width, centres_CW, generator)
    right_QK, exact_s = timed(exact(row_NW), query_QW)
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        nearest = approximate(index_folder(Path(folder), "image"), row_NW)
        build_s = time.perf_counter() - began
        found_QK, index_s = timed(nearest, query_QW)
    is_found_QK = (right_QK[:, :, None] == found_QK[:, None, :]).any(2).float()
    return {
        "recall_at_1": float(is_found_QK[:, 0].mean()),
        f"recall_at_{BEST}": float(is_found_QK.mean()),
        "search": exact_s / index_s,
        "build": build_s / exact_s,
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--threads", type=int, default=1, help="of the exact search")
    add_json_option(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{arguments.rows:,} rows of width {arguments.width}, {arguments.queries} queries, one at a time")
    print(f"{'rows':10} {'recall@1':>9} {f'recall@{BEST}':>10} {'search':>9} {'build':>9}")
    figures = {}
    for kind in ("random", "clustered"):
        figures[kind] = measure(kind, arguments.rows, arguments.width, arguments.queries)
        first, best, search, build = figures[kind].values()
        print(f"{kind:10} {first:9.1%} {best:10.1%} {search:7.1f} × {build:7.0f} ×")
    write_figures(arguments.json, figures)


if __name__ == "__main__":
    main()
