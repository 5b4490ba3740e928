"""`cclm search`: images of an embedded set by a text in any language."""

from __future__ import annotations

import argparse
from pathlib import Path

from cclm.cli.say import add_command, say
from cclm.errors import ConfigError
from cclm.files.command_line import Commands


def add_to(commands: Commands) -> None:
    """Add `search`."""
    add = add_command(commands, "search", run, "find images (or texts) of an embedded set by texts in any language")
    add("embedded", type=Path, help="what `cclm embed` wrote")
    add("query", nargs="+", help="one text or several, each in quotes")
    add("--model", type=Path, required=True, help="the model that embedded the set")
    add("--top-k", type=int, default=10, help="results for each text")
    add("--rerank", type=int, default=0, help="let the fusion encoder order the best so many anew; 0: not")
    add("--kind", default="image", help="image or text: what to find")
    add("--html", type=Path, help="also write a page with the images")
    add("--device", default="auto", help="auto (a GPU if there is one), cpu, cuda, cuda:1, …")
    add("--dtype", default="fp32", help="to compute in: fp32, bf16 or fp16")


def run(options: argparse.Namespace) -> None:
    """Search, print a table for each text."""
    from cclm.files.atomic import replace_text
    from cclm.hub.open import open_model, place
    from cclm.retrieve.search import load_embedded, page, search, text_table

    kind, html = options.kind, options.html
    if kind not in ("image", "text"):
        raise ConfigError(where="--kind", expected="image or text", got=repr(kind), do="Choose one of these.")
    if kind == "text" and (options.rerank or html):
        raise ConfigError(
            where="--kind text",
            expected="neither --rerank nor --html (they look at images)",
            got="--rerank" if options.rerank else "--html",
            do="Leave it out.",
        )
    found_set = load_embedded(options.embedded, kind)
    opened = place(open_model(options.model), options.device, options.dtype)
    found = search(opened, found_set, options.query, top_k=options.top_k, rerank_top=options.rerank)
    for text, hits in zip(options.query, found, strict=True):
        say(text)
        say(text_table(hits))
    if html is not None:
        replace_text(html, page(options.query, found, found_set.source()))
        say(f"wrote {html}")
