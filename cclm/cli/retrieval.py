"""`cclm embed`, `search` and `score`: features of a user's own images and texts, and what fits what."""

from __future__ import annotations

import argparse
from pathlib import Path

from cclm.errors import ConfigError
from cclm.files.command_line import Commands, add_command, say


def add_to(commands: Commands) -> None:
    """Add `embed`, `search` and `score`."""
    add = add_command(commands, "embed", embed_source)
    add("model", type=Path, help="a run folder, a checkpoint inside one, or an exported folder")
    add("source", type=Path, help="a folder or file, or a shard set")
    add("--to", type=Path, required=True, help="folder for the Parquet files")
    add("--captions", action="store_true", help="of image-text shards: embed the captions too")
    add("--languages", nargs="+", default=(), help="of texts in shards: only these")
    add("--batch-size", type=int, default=64, help="images or texts at a time")
    add("--units-per-file", type=int, default=2048, help="images, lines or samples a file; what a kill costs at most")
    add("--threads", type=int, default=0, help="threads for computing; 0: as many as torch takes")
    add("--device", default="auto", help="auto (a GPU if there is one), cpu, cuda, cuda:1, …")
    add("--dtype", default="fp32", help="to compute in: fp32, bf16 or fp16")

    add = add_command(commands, "search", search_texts)
    add("embedded", type=Path, help="what `cclm embed` wrote")
    add("query", nargs="+", help="one text or several, each in quotes")
    add("--model", type=Path, required=True, help="the model that embedded the set")
    add("--top-k", type=int, default=10, help="results for each text")
    add("--rerank", type=int, default=0, help="let the fusion encoder order the best so many anew; 0: not")
    add("--kind", default="image", help="image or text: what to find")
    add("--html", type=Path, help="also write a page with the images")
    add("--device", default="auto", help="auto (a GPU if there is one), cpu, cuda, cuda:1, …")
    add("--dtype", default="fp32", help="to compute in: fp32, bf16 or fp16")

    add = add_command(commands, "score", score_pairs_of_set)
    add("shards", type=Path, help="a shard set")
    add("--model", type=Path, required=True, help="a run folder, a checkpoint inside one, or an exported folder")
    add("--to", type=Path, required=True, help="folder for the scores")
    add("--batch-size", type=int, default=64, help="samples at a time")
    add("--units-per-file", type=int, default=2048, help="samples a file; what a kill costs at most")
    add("--device", default="auto", help="auto (a GPU if there is one), cpu, cuda, cuda:1, …")
    add("--dtype", default="fp32", help="to compute in: fp32, bf16 or fp16")


def embed_source(options: argparse.Namespace) -> None:
    """Embed a folder of images and texts (.txt, one a line) or shards, as Parquet files; started again, it goes on."""
    import torch

    from cclm.hub.open import open_model, place
    from cclm.retrieve.embed import Embedder, EmbeddingFacts, embed, prepare_folder, weights_fingerprint
    from cclm.retrieve.embed_source import find_source
    from cclm.track.progress import Progress

    if options.threads:
        torch.set_num_threads(options.threads)
    languages, per_file = tuple(options.languages), options.units_per_file
    source = find_source(options.source, with_captions=options.captions, languages=languages)
    opened = place(open_model(options.model), options.device, options.dtype)
    facts = EmbeddingFacts(
        model=weights_fingerprint(opened),
        source=source.fingerprint,
        root=str(options.source.resolve()),
        with_captions=options.captions,
        languages=languages,
        num_units=len(source),
        units_per_part=per_file,
        width=opened.model.config.projection_width,
    )
    missing = prepare_folder(options.to, facts)
    start = facts.num_units - sum(min(per_file, facts.num_units - part * per_file) for part in missing)
    embedder = Embedder(opened=opened, batch_size=options.batch_size)
    with Progress(facts.num_units, start, "embedding") as progress:
        done = embed(embedder, source, options.to, facts, on_unit=lambda unit: progress.update(unit))
    say(f"{options.to}: {facts.num_units} units in {facts.num_parts} files, {done} of them now")
    if source.left_out:
        told = ", ".join(f"{count} {ending}" for ending, count in sorted(source.left_out.items()))
        say(f"left out, neither images nor texts: {told}")


def search_texts(options: argparse.Namespace) -> None:
    """Find images (or texts) of an embedded set by texts in any language."""
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


def score_pairs_of_set(options: argparse.Namespace) -> None:
    """Score the pairs of a shard set by a model's features, for builds to filter by; started again, it goes on."""
    from cclm.hub.open import open_model, place
    from cclm.retrieve.embed import Embedder, EmbeddingFacts, weights_fingerprint
    from cclm.retrieve.embed_source import Shards
    from cclm.retrieve.score import score_set
    from cclm.shardfile.scores import finish_scores
    from cclm.track.progress import Progress

    for name in ("batch_size", "units_per_file"):
        if (given := getattr(options, name)) < 1:
            raise ConfigError(
                where=f"--{name.replace('_', '-')}", expected="at least 1", got=str(given), do="Leave it out."
            )
    source = Shards(options.shards, with_captions=True)
    opened = place(open_model(options.model), options.device, options.dtype)
    facts = EmbeddingFacts(
        model=weights_fingerprint(opened),
        source=f"{source.fingerprint} in {options.dtype}",
        root=str(options.shards.resolve()),
        with_captions=True,
        languages=(),
        num_units=len(source),
        units_per_part=options.units_per_file,
        width=1,
    )
    embedder = Embedder(opened=opened, batch_size=options.batch_size)
    with Progress(facts.num_units, 0, "scoring") as progress:
        parts = score_set(embedder, source, options.to, facts, on_unit=lambda unit: progress.update(unit))
    summary = finish_scores(options.to, source.view, parts)
    total = sum(int(each["count"]) for each in summary.languages.values())
    say(f"{options.to}: cosine of {total:,} pairs, by language")
    say(f"{'':8} {'pairs':>9}   5 %   25 %   50 %   75 %   95 %")
    for label, each in summary.languages.items():
        at = " ".join(f"{each['percentiles'][percentile]:6.3f}" for percentile in (5, 25, 50, 75, 95))
        say(f"{label:8} {each['count']:>9,} {at}")
    if summary.without:
        told = ", ".join(f"{reason} {count:,}" for reason, count in summary.without.items())
        say(f"without a score, so that builds that filter by it refuse them: {told}")
