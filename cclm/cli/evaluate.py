"""`cclm evaluate`: zero-shot retrieval on a shard set, in many languages."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cclm.cli.say import say
from cclm.errors import ConfigError
from cclm.types import Language

DEFAULT_TOP_K = 8
"""Candidates that are re-ranked when a dev set for it is given: half a minute for 25 languages on two cores."""


DESCRIPTION = "Zero-shot image-text retrieval on a shard set, in every language of the groups."


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `cclm evaluate`."""
    add = parser.add_argument
    add("model", help="a run folder, a checkpoint inside one, or an exported folder")
    add("--shards", required=True, help="image-text shard set; a picture's query is its first caption")
    add("--groups", help="YAML file, group: [languages]; without it English alone is measured")
    add(
        "--rerank-top-k",
        type=int,
        help="candidates that the fusion encoder orders anew, 0 for none; "
        f"without it: {DEFAULT_TOP_K} with --choose-rerank-on, else none",
    )
    add(
        "--choose-rerank-on",
        help="shard set on which the re-ranking weights are chosen, another one than --shards; "
        "without it: matching log-odds + similarity / temperature",
    )
    add(
        "--rerank-groups",
        nargs="+",
        help="with --choose-rerank-on: the groups for which the weights are chosen, each counting the same; "
        "without it: all groups of the file",
    )
    add("--out", help="JSON file for the results; seconds of other stages in it stay")
    add("--gallery", help="JSON file for the report's gallery; without it: gallery.json beside --out")
    add("--batch-size", type=int, default=256, help="pictures, texts or pairs at a time")
    add("--threads", type=int, default=0, help="threads for computing; 0: as many as torch takes")


def run(
    model: str,
    shards: str,
    groups: str | None = None,
    rerank_top_k: int | None = None,
    choose_rerank_on: str | None = None,
    rerank_groups: Sequence[str] | None = None,
    out: str | None = None,
    gallery: str | None = None,
    batch_size: int = 256,
    threads: int = 0,
) -> None:
    """Measure, print the table, write the results."""
    languages = read_groups(Path(groups)) if groups else {"english": ["en"]}
    if rerank_top_k is None:
        rerank_top_k = DEFAULT_TOP_K if choose_rerank_on else 0
    if gallery is None and out is not None:
        gallery = str(Path(out).with_name("gallery.json"))
    import torch

    from cclm.evaluate.tables import text_table
    from cclm.files.atomic import replace_text
    from cclm.hub.open import open_model
    from cclm.retrieve.measure import evaluate

    if threads:
        torch.set_num_threads(threads)
    outcome = evaluate(
        open_model(Path(model)),
        Path(shards),
        languages,
        dev_shards=Path(choose_rerank_on) if choose_rerank_on else None,
        rerank_groups=rerank_groups,
        top_k=rerank_top_k,
        batch_size=batch_size,
        on_language=show_progress,
    )
    if sys.stderr.isatty():
        sys.stderr.write("\n")
    say(text_table(outcome.results))
    if out:
        merged = merge_results(outcome.results, read_seconds(Path(out)))
        replace_text(Path(out), json.dumps(merged, ensure_ascii=False, indent=1) + "\n")
    if gallery:
        replace_text(Path(gallery), json.dumps(outcome.gallery, ensure_ascii=False, indent=1) + "\n")


def show_progress(set_name: str, language: str) -> None:
    """Name the language that is done, on a terminal only."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[Kmeasured {set_name}: {language}")
        sys.stderr.flush()


def read_groups(path: Path) -> dict[str, list[str]]:
    """Read a groups file.

    Raises:
        ConfigError: it cannot be read, or is not a mapping of names to lists of languages.
    """
    from cclm.files.reading import read_typed

    expected, do = "a mapping from names of groups to lists of languages", "Start from pretrain/demo_groups.yaml."
    kind: Any = Mapping[str, tuple[Language, ...]]
    groups: Mapping[str, tuple[str, ...]] = read_typed(kind, path, expected=expected, do=do)
    empty = [name for name, members in groups.items() if not members]
    if empty or not groups:
        got = f"no language in {', '.join(empty)}" if empty else "no group"
        raise ConfigError(where=str(path), expected=expected, got=got, do=do)
    return {name: list(members) for name, members in groups.items()}


def read_seconds(out: Path) -> dict[str, float]:
    """Return the seconds of other stages that an older results file holds."""
    from cclm.files.reading import read_json

    return dict(read_json(out, {}).get("seconds", {}))


def merge_results(results: dict[str, Any], seconds: dict[str, float]) -> dict[str, Any]:
    """Return `results`, with the seconds of the other stages added."""
    return {**results, "seconds": {**seconds, **results["seconds"]}}
