"""`cclm embed`: features of pictures and texts as Parquet; goes on where it was stopped."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from cclm.cli.say import say

DESCRIPTION = "Embed a folder of pictures and texts (.txt, one a line) or a shard set. Started again, it goes on."


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `cclm embed`."""
    add = parser.add_argument
    add("model", help="a run folder, a checkpoint inside one, or an exported folder")
    add("source", help="a folder or file, or a shard set")
    add("--to", required=True, help="folder for the Parquet files")
    add("--captions", action="store_true", help="of image-text shards: embed the captions too")
    add("--languages", nargs="+", help="of texts in shards: only these")
    add("--batch-size", type=int, default=64, help="pictures or texts at a time")
    add("--units-per-file", type=int, default=2048, help="pictures, lines or samples a file; what a kill costs at most")
    add("--threads", type=int, default=0, help="threads for computing; 0: as many as torch takes")
    add("--device", default="auto", help="auto (a GPU if there is one), cpu, cuda, cuda:1, …")
    add("--dtype", default="fp32", help="to compute in: fp32, bf16 or fp16")


def run(
    model: str,
    source: str,
    to: str,
    captions: bool = False,
    languages: Sequence[str] | None = None,
    batch_size: int = 64,
    units_per_file: int = 2048,
    threads: int = 0,
    device: str = "auto",
    dtype: str = "fp32",
) -> None:
    """Embed, with a progress bar."""
    import torch

    from cclm.hub.open import open_model, place
    from cclm.retrieve.embed import Embedder, EmbeddingFacts, embed, prepare_folder, weights_fingerprint
    from cclm.retrieve.embed_source import find_source
    from cclm.track.progress import Progress

    if threads:
        torch.set_num_threads(threads)
    taken = tuple(languages or ())
    found = find_source(Path(source), with_captions=captions, languages=taken)
    opened = place(open_model(Path(model)), device, dtype)
    facts = EmbeddingFacts(
        model=weights_fingerprint(opened),
        source=found.fingerprint,
        root=str(Path(source).resolve()),
        with_captions=captions,
        languages=taken,
        num_units=len(found),
        units_per_part=units_per_file,
        width=opened.model.config.projection_width,
    )
    missing = prepare_folder(Path(to), facts)
    start = facts.num_units - sum(min(units_per_file, facts.num_units - part * units_per_file) for part in missing)
    with Progress(facts.num_units, start, "embedding") as progress:
        done = embed(
            Embedder(opened=opened, batch_size=batch_size), found, Path(to), facts, on_unit=lambda n: progress.update(n)
        )
    say(f"{to}: {facts.num_units} units in {facts.num_parts} files, {done} of them now")
