"""`cclm search`: pictures of an embedded set by a text in any language."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from cclm.cli.say import say
from cclm.errors import ConfigError

DESCRIPTION = "Find pictures (or texts) of an embedded set by texts in any language."


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `cclm search`."""
    add = parser.add_argument
    add("embedded", help="what `cclm embed` wrote")
    add("query", nargs="+", help="one text or several, each in quotes")
    add("--model", required=True, help="the model that embedded the set")
    add("--top-k", type=int, default=10, help="answers for each text")
    add("--rerank", type=int, default=0, help="let the fusion encoder order the best so many anew; 0: not")
    add("--kind", default="image", help="image or text: what to find")
    add("--html", help="also write a page with the pictures")
    add("--device", default="auto", help="auto (a GPU if there is one), cpu, cuda, cuda:1, …")
    add("--dtype", default="fp32", help="to compute in: fp32, bf16 or fp16")


def run(
    embedded: str,
    query: Sequence[str],
    model: str,
    top_k: int = 10,
    rerank: int = 0,
    kind: str = "image",
    html: str | None = None,
    device: str = "auto",
    dtype: str = "fp32",
) -> None:
    """Search, print a table for each text."""
    from cclm.files.atomic import replace_text
    from cclm.hub.open import open_model, place
    from cclm.retrieve.search import load_embedded, page, search, text_table

    if kind not in ("image", "text"):
        raise ConfigError(where="--kind", expected="image or text", got=repr(kind), do="Choose one of these.")
    if kind == "text" and (rerank or html):
        raise ConfigError(
            where="--kind text",
            expected="neither --rerank nor --html (they look at pictures)",
            got="--rerank" if rerank else "--html",
            do="Leave it out.",
        )
    found_set = load_embedded(Path(embedded), kind)
    opened = place(open_model(Path(model)), device, dtype)
    found = search(opened, found_set, list(query), top_k=top_k, rerank_top=rerank)
    for text, hits in zip(query, found, strict=True):
        say(text)
        say(text_table(hits))
    if html is not None:
        replace_text(Path(html), page(list(query), found, found_set.source()))
        say(f"wrote {html}")
