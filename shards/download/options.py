"""`python -m shards download RECIPE.yaml`: how it behaves towards hosts, and what may become of a URL."""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from cclm.files.describe import add_fields, read_fields

NOT_TRIED: Final = "not_tried"
"""Status of an entry that a stopped download did not come to."""
BUSY: Final = (408, 425, 429, 500, 502, 503, 504)
"""HTTP answers that may be another one soon."""
TRANSIENT: Final = frozenset(
    {NOT_TRIED, "timeout", "connection_failed", "robots_unreachable", *(f"http_{code}" for code in BUSY)}
)
"""Statuses that the next run of the same command tries again."""


@dataclass(frozen=True, kw_only=True)
class DownloadOptions:
    """Limits of time and rate, and the robots policy. They change how long a download takes, not what its tars hold."""

    threads: int = 32
    """Images fetched at once."""
    per_host: int = 2
    """Of them, at most so many from one host."""
    interval_s: float = 0.0
    """Seconds between two requests to one host (a Crawl-delay may ask for more)."""
    timeout_s: float = 20.0
    """Seconds for connecting, and for each wait for data."""
    deadline_s: float = 60.0
    """Seconds for a whole answer, from the look-up of the host's name to the last byte, which a host may send slowly. A
    slower one is left for the next run."""
    retries: int = 3
    """Further tries of what may pass: after a lost connection, a time-out, or an answer that the host is busy."""
    backoff_s: float = 1.0
    """Seconds before the first further try; doubles each time."""
    max_wait_s: float = 60.0
    """Longest wait that a host may ask for, by a Retry-After header or a Crawl-delay; one that asks for more is left
    alone."""
    max_bytes: int = 20 << 20
    """Larger answers are broken off."""
    user_agent: str = "cclm-shards (collects image-text data for research)"
    """Who asks."""
    robots: bool = True
    """Ask each host's robots.txt first."""

    @property
    def agent(self) -> str:
        """The name that robots.txt and X-Robots-Tag may address: the first word, up to a "/" or a space."""
        return self.user_agent.replace("/", " ").split(" ", 1)[0]


_NAMES: Final = [item.name for item in fields(DownloadOptions)]


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """An image, or the reason why there is none."""

    status: str
    """"success", or the reason: http_404, timeout, robots_denied, opted_out, image_format, …"""
    message: str = ""
    """Details of a failure."""
    image: bytes = b""
    """Empty if there is none."""
    image_format: str = ""
    width: int = 0
    height: int = 0


def add_command(commands: Any) -> None:
    """Add `download` to the parser's commands."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "download", help="fetch the images of lists of URLs; the same command again fetches only what failed"
    )
    parser.add_argument("recipe", type=Path, metavar="RECIPE.yaml")
    parser.add_argument("--again", action="store_true", help="also try again what failed for good (404, opt-outs, …)")
    parser.add_argument("--no-robots", dest="robots", action="store_false", help="do not ask robots.txt")
    add_fields(parser, DownloadOptions, [name for name in _NAMES if name != "robots"])
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Download; say what became of every entry of the lists. Failures are no error: the build counts them."""
    from shards.corpora.table import DOWNLOADABLE, corpus_of
    from shards.download.store import download
    from shards.recipe import load_recipe

    options = DownloadOptions(**read_fields(arguments, _NAMES))
    num_lists = 0
    for name, entry in load_recipe(arguments.recipe).sets.items():
        corpus = corpus_of(entry.corpus, entry.options)
        if not isinstance(corpus, DOWNLOADABLE) or corpus.downloads is None:
            continue
        num_lists += 1

        def report(totals: Counter[str], name: str = name) -> None:
            console.out(f"{name}: {totals.total():,} seen, {totals['success']:,} here")

        totals = download(corpus, options, again=arguments.again, on_shard=report)
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in totals.most_common())
        console.out(f"{name}: {totals.total():,} entries in {corpus.downloads}: {reasons or 'none'}")
    if not num_lists:
        console.out("no set of this recipe is a list of URLs")
    return 0
