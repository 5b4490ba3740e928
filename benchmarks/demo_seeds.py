"""Mean and spread of the demo's results over seeds: `python -m benchmarks.demo_seeds RUN RUN … [--json PATH]`.

Each RUN is a finished run folder of `python -m pretrain.demo --seed N --run RUN`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from cclm.evaluate.statistics import spread

GROUPS = ("english", "parallel_non_latin", "parallel_latin", "control")
DIRECTIONS = {"t2i": "text → image", "i2t": "image → text"}
RANKS = ("r1", "r5", "r10")


def rows(results: list[dict[str, Any]]) -> list[tuple[str, list[float]]]:
    """Every quantity with its values over the seeds."""
    found = []
    for kind in ("dual encoder", "re-ranked"):
        tables = [result["groups"] if kind == "dual encoder" else result["reranked"]["groups"] for result in results]
        for group in GROUPS:
            for direction, title in DIRECTIONS.items():
                for rank in RANKS:
                    values = [float(table[group][direction][rank]) for table in tables]
                    found.append((f"{kind}, {group}, {title}, R@{rank[1:]}", values))
    for hardness in ("random", "hard"):
        values = [float(result["matching"]["languages"]["en"][hardness]["accuracy"]) for result in results]
        found.append((f"matching accuracy, en, {hardness} wrong pairs", values))
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results = [json.loads((run / "results.json").read_text(encoding="utf-8")) for run in options.runs]
    table = [(name, spread(values), values) for name, values in rows(results)]
    print("| quantity, percent | mean | standard deviation | each seed |")
    print("|---|---|---|---|")
    for name, summary, values in table:
        each = ", ".join(f"{value:.1f}" for value in values)
        print(f"| {name} | {summary.mean:.1f} | {summary.standard_deviation:.1f} | {each} |")
    if options.json:
        content = {name: {"mean": summary.mean, "values": values} for name, summary, values in table}
        options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
