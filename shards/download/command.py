"""`python -m shards download RECIPE.yaml`: the images of every set of a recipe that is a list of URLs."""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import fields
from pathlib import Path
from typing import Any

from rich.console import Console

from shards.download.options import DownloadOptions

_HELP = {
    "threads": "images fetched at once",
    "per_host": "of them, at most so many from one host",
    "interval_s": "seconds between two requests to one host (a Crawl-delay may ask for more)",
    "timeout_s": "seconds for connecting, and for each wait for data",
    "deadline_s": "seconds for a whole answer, which a host may send slowly",
    "retries": "further tries of what may pass",
    "backoff_s": "seconds before the first further try; doubles each time",
    "max_wait_s": "longest wait that a host may ask for",
    "max_bytes": "larger answers are broken off",
    "user_agent": "who asks",
}


def add_command(commands: Any) -> None:
    """Add `download` to the parser's commands."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "download", help="fetch the images of lists of URLs; the same command again fetches only what failed"
    )
    parser.add_argument("recipe", type=Path, metavar="RECIPE.yaml")
    parser.add_argument("--again", action="store_true", help="also try again what failed for good (404, opt-outs, …)")
    parser.add_argument("--no-robots", dest="robots", action="store_false", help="do not ask robots.txt")
    for item in fields(DownloadOptions):
        if item.name in _HELP:
            parser.add_argument(
                f"--{item.name.replace('_', '-')}",
                type=type(item.default),
                default=item.default,
                help=_HELP[item.name],
            )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Download; say what became of every entry of the lists. Failures are no error: the build counts them."""
    from shards.corpora.table import DOWNLOADABLE, corpus_of
    from shards.download.store import download
    from shards.recipe import load_recipe

    options = DownloadOptions(**{name: getattr(arguments, name) for name in (*_HELP, "robots")})
    num_lists = 0
    for name, entry in load_recipe(arguments.recipe).sets.items():
        corpus = corpus_of(entry.corpus, entry.options)
        if not isinstance(corpus, DOWNLOADABLE) or corpus.downloads is None:
            continue
        num_lists += 1
        done: Counter[str] = Counter()

        def report(counts: Counter[str], done: Counter[str] = done, name: str = name) -> None:
            done.update(counts)
            console.print(f"{name}: {sum(done.values()):,} seen, {done['success']:,} here", highlight=False)

        totals = download(corpus, options, again=arguments.again, on_shard=report)
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in totals.most_common())
        console.print(
            f"{name}: {sum(totals.values()):,} entries in {corpus.downloads}: {reasons or 'none'}",
            highlight=False,
            soft_wrap=True,
        )
    if not num_lists:
        console.print("no set of this recipe is a list of URLs", highlight=False)
    return 0
