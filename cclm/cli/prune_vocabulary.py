"""`cclm prune-vocabulary`: a model whose vocabulary is what a corpus uses."""

from __future__ import annotations

import argparse
from itertools import chain
from pathlib import Path

from cclm.cli.say import add_command, say
from cclm.errors import ConfigError
from cclm.files.command_line import Commands


def add_to(commands: Commands) -> None:
    """Add `prune-vocabulary`."""
    add = add_command(
        commands,
        "prune-vocabulary",
        run,
        "keep the pieces that a corpus uses, in tokenizer, word embeddings and masked-LM head, and check the result",
    )
    add("folder", type=Path, help="an export or import with its tokenizer, or the folder of an XLM-R-like model")
    add("--to", type=Path, required=True, help="the folder to make")
    add("--shards", type=Path, nargs="+", default=[], help="shard sets whose texts are counted")
    add("--texts", type=Path, nargs="+", default=[], help="text files (UTF-8), one text a line, that are counted too")


def run(options: argparse.Namespace) -> None:
    """Count, write, check, and say what became of the vocabulary."""
    if not options.shards and not options.texts:
        raise ConfigError(
            where="cclm prune-vocabulary",
            expected="--shards or --texts",
            got="neither",
            do="Name the corpus that the model is meant for.",
        )
    from cclm.files.lines import text_lines
    from cclm.hub.prune_vocabulary import REPORT_NAME, prune_vocabulary
    from cclm.shardfile.reader import texts_of_sets

    to = options.to
    texts = lambda: chain(texts_of_sets(options.shards), *map(text_lines, options.texts))  # noqa: E731
    pruned = prune_vocabulary(options.folder, texts, to)
    say(f"{pruned.texts:,} texts use {pruned.pieces_after:,} of {pruned.pieces_before:,} pieces")
    say(f"{pruned.parameters_before:,} parameters before, {pruned.parameters_after:,} after")
    say(
        f"wrote {to}: the same pieces for every text, states that differ by {pruned.max_abs_states:.1e}, logits of the "
        f"kept pieces by {pruned.max_abs_logits:.1e}; more in {to}/{REPORT_NAME}"
    )
    if pruned.left_behind:
        say(f"left behind, because it would be wrong now: {', '.join(pruned.left_behind)}")
