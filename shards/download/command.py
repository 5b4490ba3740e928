"""`python -m shards download RECIPE.yaml`: the images of every set of a recipe that is a list of URLs."""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import fields
from pathlib import Path
from typing import Any

from rich.console import Console

from shards.download.options import DownloadOptions


def add_command(commands: Any) -> None:
    """Add `download` to the parser's commands."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "download", help="fetch the images of lists of URLs; the same command again fetches only what failed"
    )
    parser.add_argument("recipe", type=Path, metavar="RECIPE.yaml")
    parser.add_argument("--again", action="store_true", help="also try again what failed for good (404, opt-outs, …)")
    parser.add_argument("--no-robots", dest="robots", action="store_false", help="do not ask robots.txt")
    for item in fields(DownloadOptions):
        if "help" in item.metadata:
            name, kind = f"--{item.name.replace('_', '-')}", type(item.default)
            parser.add_argument(name, type=kind, default=item.default, help=item.metadata["help"])
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Download; say what became of every entry of the lists. Failures are no error: the build counts them."""
    from shards.corpora.table import DOWNLOADABLE, corpus_of
    from shards.download.store import download
    from shards.recipe import load_recipe

    given = vars(arguments)
    options = DownloadOptions(**{item.name: given[item.name] for item in fields(DownloadOptions) if item.name in given})
    num_lists = 0
    for name, entry in load_recipe(arguments.recipe).sets.items():
        corpus = corpus_of(entry.corpus, entry.options)
        if not isinstance(corpus, DOWNLOADABLE) or corpus.downloads is None:
            continue
        num_lists += 1
        done: Counter[str] = Counter()

        def report(counts: Counter[str], done: Counter[str] = done, name: str = name) -> None:
            done.update(counts)
            console.out(f"{name}: {sum(done.values()):,} seen, {done['success']:,} here")

        totals = download(corpus, options, again=arguments.again, on_shard=report)
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in totals.most_common())
        console.out(f"{name}: {sum(totals.values()):,} entries in {corpus.downloads}: {reasons or 'none'}")
    if not num_lists:
        console.out("no set of this recipe is a list of URLs")
    return 0
