"""`cclm embed`, `search` and `score`: features of a user's own images and texts, and what fits what."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from cclm.errors import ConfigError
from cclm.files.command_line import Commands, add_command, not_negative, positive, say

if TYPE_CHECKING:
    from cclm.hub.open import OpenedModel
    from cclm.retrieve.index import Nearest
    from cclm.retrieve.search import EmbeddedSet
    from cclm.retrieve.storage import StorageCost


def add_to(commands: Commands) -> None:
    """Add `embed`, `search` and `score`."""
    add = add_command(commands, "embed", embed_source)
    add("model", type=Path, help="a run folder, a checkpoint inside one, or an exported folder")
    add("source", type=Path, help="a folder or file, or a shard set")
    add("--to", type=Path, required=True, help="folder for the Parquet files")
    add("--captions", action="store_true", help="of image-text shards: embed the captions too")
    add("--languages", nargs="+", default=(), help="of texts in shards: only these")
    add("--batch-size", type=positive, default=64, help="images or texts at a time")
    add(
        "--units-per-file",
        type=positive,
        default=2048,
        help="images, lines or samples a file; what a kill costs at most",
    )
    add("--threads", type=not_negative, default=0, help="threads for computing; 0: as many as torch takes")
    add("--device", default="auto", help="auto (a GPU if there is one), cpu, cuda, cuda:1, …")
    add("--dtype", default="fp32", help="to compute in: fp32, bf16 or fp16")
    add("--width", type=not_negative, default=0, help="keep only so many first components of a feature; 0: all")
    add("--store", default="fp32", help="to keep features in: fp32, fp16 or int8")

    add = add_command(commands, "search", search_texts)
    add("embedded", type=Path, help="what `cclm embed` wrote")
    add("query", nargs="*", help="one text or several, each in quotes")
    add("--model", type=Path, required=True, help="the model that embedded the set")
    add("--top-k", type=positive, default=10, help="results for each text")
    add(
        "--rerank",
        type=not_negative,
        help="let the fusion encoder order the best so many anew (default: 0; with --serve 50)",
    )
    add("--kind", default="image", choices=("image", "text"), help="what to find")
    how = "exact looks at every row; usearch, for millions, builds an index once"
    add("--index", default="exact", choices=("exact", "usearch"), help=how)
    add("--html", type=Path, help="also write a page with the images")
    add("--serve", action="store_true", help="no query: open a page with a query box, until Ctrl-C")
    add("--host", default="127.0.0.1", help="with --serve: where to listen; this machine alone reaches the default")
    add("--port", type=int, default=8000, help="with --serve; 0: any that is free")
    add("--device", default="auto", help="auto (a GPU if there is one), cpu, cuda, cuda:1, …")
    add("--dtype", default="fp32", help="to compute in: fp32, bf16 or fp16")

    add = add_command(commands, "score", score_pairs_of_set)
    add("shards", type=Path, help="a shard set")
    add("--model", type=Path, required=True, help="a run folder, a checkpoint inside one, or an exported folder")
    add("--to", type=Path, required=True, help="folder for the scores")
    add("--batch-size", type=positive, default=64, help="samples at a time")
    add("--units-per-file", type=positive, default=2048, help="samples a file; what a kill costs at most")
    add("--device", default="auto", help="auto (a GPU if there is one), cpu, cuda, cuda:1, …")
    add("--dtype", default="fp32", help="to compute in: fp32, bf16 or fp16")


def embed_source(options: argparse.Namespace) -> None:
    """Embed a folder of images and texts (.txt, one a line) or shards, as Parquet files; started again, it goes on."""
    import torch

    from cclm.hub.open import open_model, place
    from cclm.retrieve.embed import Embedder, EmbeddingFacts, embed, prepare_folder, without_feature, written_by_one
    from cclm.retrieve.embed_source import find_source
    from cclm.retrieve.storage import StorageCost, storage_of
    from cclm.track.progress import Progress

    if options.threads:
        torch.set_num_threads(options.threads)
    languages, per_file = tuple(options.languages), options.units_per_file
    source = find_source(options.source, with_captions=options.captions, languages=languages)
    opened = place(open_model(options.model), options.device, options.dtype)
    full_width = opened.model.config.projection_width
    storage = storage_of(options.width, options.store, full_width)
    facts = EmbeddingFacts(
        model=opened.fingerprint,
        source=source.fingerprint,
        root=str(options.source.resolve()),
        with_captions=options.captions,
        languages=languages,
        num_units=len(source),
        units_per_part=per_file,
        **vars(storage),
    )
    embedder, cost = Embedder(opened=opened, batch_size=options.batch_size), StorageCost(storage)
    with written_by_one(options.to):
        missing = prepare_folder(options.to, facts)
        start = facts.num_units - sum(min(per_file, facts.num_units - part * per_file) for part in missing)
        with Progress(facts.num_units, start, "embedding") as progress:
            done = embed(embedder, source, options.to, facts, on_unit=progress.update, on_rows=cost.add)
    say(f"{options.to}: {facts.num_units} units in {facts.num_parts} files, {done} of them now")
    if not storage.is_all_of(full_width):
        _say_cost(cost)
    if without := without_feature(options.to, facts):
        say(f"without a feature (column `error`): {_counted(without)}")
    if source.left_out:
        say(f"left out, neither images nor texts: {_counted(source.left_out)}")


def _say_cost(cost: StorageCost) -> None:
    storage = cost.storage
    form = f"stored as {storage.store}, {storage.width} components"
    say(f"{form}; against all of them in fp32, of {len(cost.rows):,} rows:")
    for what, now, full in cost.measured():
        say(f"  {what}: {now:.1%}{'' if full == 1 else f' ({full:.1%} in full)'}")


def search_texts(options: argparse.Namespace) -> None:
    """Find images (or texts) of an embedded set by texts in any language; with --serve, from a page."""
    from cclm.files.atomic import replace_text
    from cclm.hub.open import open_model, place
    from cclm.retrieve.search import load_embedded, page, search, text_table

    _check_search(options)
    found_set = load_embedded(options.embedded, options.kind)
    nearest = _nearest(options, found_set)
    opened = place(open_model(options.model), options.device, options.dtype)
    if options.serve:
        _serve(options, opened, found_set, nearest)
        return
    rerank_top = options.rerank or 0
    found = search(opened, found_set, options.query, top_k=options.top_k, rerank_top=rerank_top, nearest=nearest)
    for text, hits in zip(options.query, found, strict=True):
        say(text)
        say(text_table(hits))
    if options.html is not None:
        replace_text(options.html, page(options.query, found, found_set.source()))
        say(f"wrote {options.html}")


def _check_search(options: argparse.Namespace) -> None:
    given = [name for name in ("serve", "rerank", "html") if getattr(options, name)]
    if options.kind == "text" and given:
        raise ConfigError(
            where="--kind text",
            expected="neither --serve, --rerank nor --html (they look at images)",
            got=f"--{given[0]}",
            do="Leave it out.",
        )
    if options.serve == bool(options.query) or (options.serve and options.html):
        raise ConfigError(
            where="search",
            expected="texts to search for, or --serve and neither a text nor --html",
            got="both" if options.serve else "no text",
            do='Give a text in quotes ("a red car"), or --serve alone.',
        )


def _nearest(options: argparse.Namespace, embedded: EmbeddedSet) -> Nearest:
    from cclm.retrieve.index import approximate, exact, index_folder

    if options.index == "exact":
        return exact(embedded.feature_NE)
    return approximate(
        index_folder(options.embedded, options.kind),
        embedded.feature_NE,
        on_build=lambda folder: say(f"building an index of {len(embedded.key):,} rows, once: {folder}"),
    )


def _serve(options: argparse.Namespace, opened: OpenedModel, embedded: EmbeddedSet, nearest: Nearest) -> None:
    from cclm.retrieve.answer import SearchBox
    from cclm.retrieve.search import Searcher, load_embedded
    from cclm.retrieve.serve import address_of, is_loopback, listen, make_app, serve

    texts = None
    if embedded.facts.with_captions:
        texts = load_embedded(options.embedded, "text", may_be_empty=True, with_features=False)
    box = SearchBox(
        searcher=Searcher(opened=opened, embedded=embedded, nearest=nearest),
        source=embedded.source(),
        texts=texts,
        top_k=options.top_k,
        rerank_top=(50 if options.rerank is None else options.rerank) if opened.model.matching_head else 0,
        name=options.embedded.resolve().name,
    )
    app = make_app(box, options.host)
    with listen(options.host, options.port) as listening:
        if not is_loopback(options.host):
            say(f"everybody who reaches {options.host} can search, and see the images")
        say(f"{address_of(listening)}  (Ctrl-C ends it)")
        serve(app, listening)
    say("ended")


def score_pairs_of_set(options: argparse.Namespace) -> None:
    """Score the pairs of a shard set by a model's features, for builds to filter by; started again, it goes on."""
    from cclm.hub.open import open_model, place
    from cclm.retrieve.embed import Embedder, EmbeddingFacts, written_by_one
    from cclm.retrieve.embed_source import Shards
    from cclm.retrieve.score import score_set
    from cclm.shardfile.scores import finish_scores
    from cclm.track.progress import Progress

    source = Shards(options.shards, with_captions=True)
    opened = place(open_model(options.model), options.device, options.dtype)
    facts = EmbeddingFacts(
        model=opened.fingerprint,
        source=f"{source.fingerprint} in {options.dtype}",
        root=str(options.shards.resolve()),
        with_captions=True,
        languages=(),
        num_units=len(source),
        units_per_part=options.units_per_file,
        width=1,
    )
    embedder = Embedder(opened=opened, batch_size=options.batch_size)
    with written_by_one(options.to), Progress(facts.num_units, 0, "scoring") as progress:
        parts = score_set(embedder, source, options.to, facts, on_unit=progress.update)
        summary = finish_scores(options.to, source.view, parts)
    total = sum(int(each["count"]) for each in summary.languages.values())
    say(f"{options.to}: cosine of {total:,} pairs, by language")
    say(f"{'':8} {'pairs':>9}   5 %   25 %   50 %   75 %   95 %")
    for label, each in summary.languages.items():
        at = " ".join(f"{each['percentiles'][percentile]:6.3f}" for percentile in (5, 25, 50, 75, 95))
        say(f"{label:8} {each['count']:>9,} {at}")
    if summary.without:
        say(f"without a score, so that builds that filter by it refuse them: {_counted(summary.without)}")


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items()))
