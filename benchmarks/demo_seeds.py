"""The tables of docs/demo.md: `python -m benchmarks.demo_seeds RUN RUN … [--json PATH]`.

Each RUN is a finished run folder of `python -m pretrain.demo --seed N --run RUN`, or a results.json. The seed stands in
the config.yaml beside the results; without one a column has the name of its folder or file.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from benchmarks.figures import add_json_option, write_figures
from cclm.errors import CclmError, ConfigError
from cclm.files.reading import read_json
from cclm.hub.model_card import recall_cell
from cclm.recipe.read import CONFIG_FILE, read_run_config
from cclm.report.claims import RERANK_TITLES
from cclm.report.facts import RESULTS_NAME

DIRECTIONS = {"t2i": "text → image", "i2t": "image → text"}
LEAST_SLACK = 3.0
"""Points of R@10 that a run may always differ from the documented mean."""
EXPECTED, DO = "a demo run folder or its results.json", "Give finished runs of `python -m pretrain.demo`."


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Values of one quantity over seeds."""

    mean: float
    standard_deviation: float
    """Over seeds, with n − 1; 0 for one seed."""
    lowest: float
    highest: float
    num_seeds: int

    def __str__(self) -> str:
        return f"{self.mean:.1f} ± {self.standard_deviation:.1f} ({self.num_seeds} seeds)"


def spread(values: Sequence[float]) -> Spread:
    """Return mean and spread of one quantity over seeds."""
    deviation = stdev(values) if len(values) > 1 else 0.0
    return Spread(
        mean=fmean(values),
        standard_deviation=deviation,
        lowest=min(values),
        highest=max(values),
        num_seeds=len(values),
    )


@dataclass(frozen=True, kw_only=True)
class Seed:
    """One run's results, with the name of its column."""

    name: str
    results: dict[str, Any]


def read_seed(path: Path) -> Seed:
    """Read a run folder or a results.json.

    Raises:
        ConfigError: neither, or not measured by group.
    """
    file = path / RESULTS_NAME if path.is_dir() else path
    results = read_json(file, None)
    if not isinstance(results, dict) or "groups" not in results:
        got = "no such file" if results is None else "no groups in it"
        raise ConfigError(where=str(file), expected=EXPECTED, got=got, do=DO)
    if file.with_name(CONFIG_FILE).exists():
        return Seed(name=f"seed {read_run_config(file.parent).seed}", results=results)
    return Seed(name=path.resolve().name if path.is_dir() else path.stem, results=results)


def table(seeds: Sequence[Seed]) -> list[str]:
    """Return a row for each group and direction that all seeds have."""
    heading = ["group", "direction", *(f"{seed.name} R@1/5/10" for seed in seeds), "mean R@10", "standard deviation"]
    lines = [row(heading), "|" + "---|" * len(heading)]
    for group in seeds[0].results["groups"]:
        for way, title in DIRECTIONS.items():
            found = [seed.results["groups"][group][way] for seed in seeds if group in seed.results["groups"]]
            if len(found) < len(seeds):
                continue
            last = spread([recall["r10"] for recall in found])
            spelled = f"{last.standard_deviation:.1f}" if len(seeds) > 1 else "–"
            lines.append(row([group, title, *map(recall_cell, found), f"{last.mean:.1f}", spelled]))
    return lines


def figures(seeds: Sequence[Seed]) -> dict[str, Any]:
    """Return recall of each seed, and mean and deviation of R@10, for each group and direction that all seeds have."""
    found: dict[str, Any] = {"seeds": [seed.name for seed in seeds], "groups": {}}
    for group in seeds[0].results["groups"]:
        if all(group in seed.results["groups"] for seed in seeds):
            ways = {way: [seed.results["groups"][group][way] for seed in seeds] for way in DIRECTIONS}
            spreads = {way: spread([recall["r10"] for recall in recalls]) for way, recalls in ways.items()}
            found["groups"][group] = {
                way: {
                    "recall": recalls,
                    "r10_mean": spreads[way].mean,
                    "r10_standard_deviation": spreads[way].standard_deviation if len(seeds) > 1 else None,
                }
                for way, recalls in ways.items()
            }
    return found


def outside(seeds: Sequence[Seed], spread_path: Path) -> list[str]:
    """Name what lies outside of a documented spread, which `--json` wrote for several seeds.

    R@10 of one seed may differ from the documented mean by three standard deviations, and in any case by 3 points: the
    same seed gives other numbers on another kind of processor.
    """
    found = []
    documented = read_json(spread_path, {}).get("groups")
    if not documented:
        raise ConfigError(
            where=str(spread_path), expected="what --json wrote", got="no groups in it", do="Name another."
        )
    for group, ways in documented.items():
        for way, usual in ways.items():
            slack = max(3 * (usual["r10_standard_deviation"] or 0.0), LEAST_SLACK)
            for seed in seeds:
                recall = seed.results["groups"].get(group, {}).get(way, {}).get("r10")
                if recall is None or abs(recall - usual["r10_mean"]) > slack:
                    where = f"{seed.name}, {group}, {DIRECTIONS[way]}"
                    found.append(f"{where}: expected R@10 {usual['r10_mean']:.1f} ± {slack:.1f}, got {recall}")
    return found


def row(cells: Sequence[str]) -> str:
    """Return a row of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def matching_line(seeds: Sequence[Seed]) -> str:
    """Return the matching head's accuracies in English, or nothing if they were not measured."""
    found = [((seed.results.get("matching") or {}).get("languages") or {}).get("en") for seed in seeds]
    scores = [score for score in found if score]
    if len(scores) < len(seeds):
        return ""
    prior = seeds[0].results["matching"]["prior"]["accuracy"]
    parts = (
        f"{kind} wrong pairs " + ", ".join(f"{score[kind]['accuracy']:.1f}" for score in scores) for kind in scores[0]
    )
    return f"Matching head on held-out English pairs, accuracy (prior {prior:.1f}): {'; '.join(parts)}."


def rerank_table(seeds: Sequence[Seed]) -> list[str]:
    """Return text → image R@1 of each group by each re-ranking rule; nothing unless all seeds have the fixed rules."""
    if not all("reranked_not_chosen" in seed.results for seed in seeds):
        return []
    weights = ", ".join(f"{seed.results['reranked']['rule']['match_weight']:g}" for seed in seeds)
    top_k = seeds[0].results["reranked"]["top_k"]
    heading = ["group", "dual encoder", f"chosen on the dev set (weight {weights})"]
    heading += [f"not chosen: {title}" for title in RERANK_TITLES.values()]
    lines = [f"Text → image R@1 when the {top_k} best candidates are ordered anew:", ""]
    lines += [row(heading), "|" + "---|" * len(heading)]
    for group in seeds[0].results["reranked"]["groups"]:
        orders = [[seed.results for seed in seeds], [seed.results["reranked"] for seed in seeds]]
        for name in RERANK_TITLES:  # a fixed rule that was chosen stands in its other place
            orders.append([seed.results["reranked_not_chosen"].get(name, seed.results["reranked"]) for seed in seeds])
        cells = [", ".join(f"{order['groups'][group]['t2i']['r1']:.1f}" for order in of_seeds) for of_seeds in orders]
        lines.append(row([group, *cells]))
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo_seeds", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders, or results.json files")
    parser.add_argument("--within", type=Path, metavar="PATH", help="fail unless R@10 lies within this spread")
    add_json_option(parser)
    options = parser.parse_args(arguments)
    try:
        seeds = [read_seed(path) for path in options.runs]
        wrong = outside(seeds, options.within) if options.within else []
    except CclmError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    parts = [table(seeds), [matching_line(seeds)], rerank_table(seeds)]
    print("\n\n".join("\n".join(lines) for lines in parts if any(lines)))
    write_figures(options.json, figures(seeds))
    sys.stderr.write("".join(f"outside of {options.within}: {line}\n" for line in wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
