"""`python -m shards download RECIPE.yaml`: how it behaves towards hosts, and what may become of a URL."""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from rich.console import Console

NOT_TRIED: Final = "not_tried"
"""Status of an entry that a stopped download did not come to."""
BUSY: Final = (408, 425, 429, 500, 502, 503, 504)
"""HTTP answers that may be another one soon."""
TRANSIENT: Final = frozenset(
    {NOT_TRIED, "timeout", "connection_failed", "robots_unreachable", *(f"http_{code}" for code in BUSY)}
)
"""Statuses that the next run of the same command tries again."""


def _option(default: Any, text: str) -> Any:
    """Return a field that is an option of the command line, with its help."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True, kw_only=True)
class DownloadOptions:
    """Limits of time and rate, and the robots policy. They change how long a download takes, not what its tars hold."""

    threads: int = _option(32, "images fetched at once")
    per_host: int = _option(2, "of them, at most so many from one host")
    interval_s: float = _option(0.0, "seconds between two requests to one host (a Crawl-delay may ask for more)")
    timeout_s: float = _option(20.0, "seconds for connecting, and for each wait for data")
    deadline_s: float = _option(60.0, "seconds for a whole answer, which a host may send slowly")
    """From the look-up of the host's name to the last byte. A slower one is left for the next run."""
    retries: int = _option(3, "further tries of what may pass")
    """After a lost connection, a time-out, or an answer of BUSY."""
    backoff_s: float = _option(1.0, "seconds before the first further try; doubles each time")
    max_wait_s: float = _option(60.0, "longest wait that a host may ask for")
    """By a Retry-After header or a Crawl-delay; a host that asks for more is left alone."""
    max_bytes: int = _option(20 << 20, "larger answers are broken off")
    user_agent: str = _option("cclm-shards (collects image-text data for research)", "who asks")
    robots: bool = True
    """Ask each host's robots.txt first."""

    @property
    def agent(self) -> str:
        """The name that robots.txt and X-Robots-Tag may address: the first word, up to a "/" or a space."""
        return self.user_agent.replace("/", " ").split(" ", 1)[0]


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

        def report(totals: Counter[str], name: str = name) -> None:
            console.out(f"{name}: {totals.total():,} seen, {totals['success']:,} here")

        totals = download(corpus, options, again=arguments.again, on_shard=report)
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in totals.most_common())
        console.out(f"{name}: {totals.total():,} entries in {corpus.downloads}: {reasons or 'none'}")
    if not num_lists:
        console.out("no set of this recipe is a list of URLs")
    return 0
