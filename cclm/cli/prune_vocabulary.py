"""`cclm prune-vocabulary`: a model whose vocabulary is what a corpus uses."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

from cclm.cli.say import say
from cclm.errors import ConfigError

DESCRIPTION = "Keep the pieces that a corpus uses: tokenizer, word embeddings and masked-LM head; with proof."


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `cclm prune-vocabulary`."""
    add = parser.add_argument
    add("folder", help="an export or import with its tokenizer, or the folder of an XLM-R-like model")
    add("--to", required=True, help="the folder to make")
    add("--shards", nargs="+", default=[], help="shard sets whose texts are counted")
    add("--texts", nargs="+", default=[], help="text files (UTF-8), one text a line, that are counted too")


def run(folder: str, to: str, shards: Sequence[str] = (), texts: Sequence[str] = ()) -> None:
    """Count, write, prove, and say what became of the vocabulary."""
    if not shards and not texts:
        raise ConfigError(
            where="cclm prune-vocabulary",
            expected="--shards or --texts",
            got="neither",
            do="Name the corpus that the model is meant for.",
        )
    from cclm.hub.prune_vocabulary import REPORT_NAME, prune_vocabulary
    from cclm.shardfile.texts import texts_of_sets

    sets = [Path(path) for path in shards]
    files = [Path(path) for path in texts]
    pruned = prune_vocabulary(Path(folder), lambda: chain(texts_of_sets(sets), lines_of(files)), Path(to))
    say(f"{pruned.texts:,} texts use {pruned.pieces_after:,} of {pruned.pieces_before:,} pieces")
    say(f"{pruned.parameters_before:,} parameters before, {pruned.parameters_after:,} after")
    say(
        f"wrote {to}: the same pieces for every text, states that differ by {pruned.max_abs_states:.1e}, logits of the "
        f"kept pieces by {pruned.max_abs_logits:.1e}; more in {to}/{REPORT_NAME}"
    )
    if pruned.left_behind:
        say(f"left behind, because it would be wrong now: {', '.join(pruned.left_behind)}")


def lines_of(files: Sequence[Path]) -> Iterator[str]:
    """Yield the lines of text files.

    Raises:
        ConfigError: a file that cannot be read.
    """
    for path in files:
        try:
            with path.open(encoding="utf-8") as lines:
                yield from (line.rstrip("\n") for line in lines)
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                where=str(path), expected="a UTF-8 text file", got=str(error), do="Check the path and the encoding."
            ) from error
