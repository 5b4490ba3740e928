"""Find images (or texts) of an embedded set by a text in any language.

query ─ text feature ─ cosine with every row ─▶ best K ─ (re-rank: the fusion encoder looks at each) ─▶ table, page
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from cclm.errors import ConfigError
from cclm.files.reading import read_json
from cclm.hub.open import OpenedModel
from cclm.report.thumbnails import thumbnail_uri
from cclm.retrieve.embed import FACTS_NAME, Embedder, EmbeddingFacts, part_path
from cclm.retrieve.embed_source import EmbedSource, find_source
from cclm.retrieve.index import Nearest, exact


@dataclass(frozen=True, kw_only=True)
class EmbeddedSet:
    """Rows with a feature, in memory."""

    facts: EmbeddingFacts
    unit: list[int]
    key: list[str]
    text: list[str | None]
    language: list[str | None]
    feature_NE: Tensor
    """Unit vectors of the stored width, float32."""

    def source(self) -> EmbedSource:
        """Where the images lie. Raises ConfigError: they are gone, or others now."""
        found = find_source(
            Path(self.facts.root), with_captions=self.facts.with_captions, languages=self.facts.languages
        )
        if found.fingerprint != self.facts.source:
            raise ConfigError(
                where=self.facts.root,
                expected="the files that were embedded",
                got="others",
                do="Embed them again, or search without --rerank and --html.",
            )
        return found


@dataclass(frozen=True, kw_only=True)
class Hit:
    """One result."""

    key: str
    unit: int
    text: str | None
    cosine: float
    match: float | None = None
    """Probability of a match, if it was re-ranked."""


def load_embedded(
    folder: Path, kind: str = "image", *, may_be_empty: bool = False, with_features: bool = True
) -> EmbeddedSet:
    """Read all parts of an embedded set; without features, `feature_NE` has no columns (ConfigError: not an embedded
    set, not finished, or without rows of this kind).
    """
    import pyarrow as pa
    from pyarrow import compute as pc
    from pyarrow import parquet

    found = read_json(folder / FACTS_NAME, None)
    if found is None:
        raise ConfigError(
            where=str(folder), expected="a folder that `cclm embed` wrote", got="another", do="Embed a set first."
        )
    facts = EmbeddingFacts(**{**found, "languages": tuple(found["languages"])})
    missing = [part for part in range(facts.num_parts) if not part_path(folder, part).exists()]
    if missing:
        raise ConfigError(
            where=str(folder),
            expected=f"{facts.num_parts} parts",
            got=f"{facts.num_parts - len(missing)}",
            do="Start `cclm embed` with the same options again: it makes what is missing.",
        )
    columns = None if with_features else ["unit", "key", "kind", "text", "language", "error"]
    parts = (parquet.read_table(part_path(folder, part), columns=columns) for part in range(facts.num_parts))
    rows = pa.concat_tables(list(parts)).filter((pc.field("kind") == kind) & pc.field("error").is_null())
    if not len(rows) and not may_be_empty:
        raise ConfigError(
            where=str(folder), expected=f"rows of kind {kind!r}", got="none", do="Search for the other kind (--kind)."
        )
    feature_NE = torch.empty(len(rows), 0)
    if with_features:
        flat = rows["feature"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        feature_NE = facts.storage.unpack(flat.reshape(len(rows), facts.width))
    return EmbeddedSet(
        facts=facts,
        unit=rows["unit"].to_pylist(),
        key=rows["key"].to_pylist(),
        text=rows["text"].to_pylist(),
        language=rows["language"].to_pylist(),
        feature_NE=feature_NE,
    )


@dataclass(frozen=True, kw_only=True)
class Searcher:
    """A model, and a set that it embedded (ConfigError: another model embedded the set)."""

    opened: OpenedModel
    embedded: EmbeddedSet
    nearest: Nearest
    """`index.exact` or `index.approximate` of the set's features."""

    def __post_init__(self) -> None:
        if self.opened.fingerprint != self.embedded.facts.model:
            raise ConfigError(
                where=str(self.opened.origin),
                expected="the model that embedded the set",
                got="one with other weights",
                do="Search with that model, or embed the set with this one.",
            )

    def best(self, queries: Sequence[str], number: int) -> list[list[Hit]]:
        """Return the rows with the largest cosine for each query, best first (all, if there are not so many).

        Raises:
            ConfigError: a query of which no token is left, or that is not UTF-8.
        """
        feature_QE, errors = Embedder(opened=self.opened).texts(queries)
        for query, error in zip(queries, errors, strict=True):
            if error is not None:
                expected, do = "a text with at least one token", "Say more."
                if error.partition(":")[0] == "text_encoding":
                    expected, do = "a text in UTF-8", "Give the terminal a locale in UTF-8."
                raise ConfigError(where="query", expected=expected, got=repr(query), do=do)
        rows = self.embedded
        query_QW = rows.facts.storage.cut(feature_QE)
        return [
            [Hit(key=rows.key[row], unit=rows.unit[row], text=rows.text[row], cosine=cosine) for cosine, row in pairs]
            for pairs in (
                zip(cosine_K.tolist(), row_K.tolist(), strict=True)
                for cosine_K, row_K in zip(*self.nearest(query_QW, min(number, len(rows.key))), strict=True)
            )
        ]


def search(
    opened: OpenedModel,
    embedded: EmbeddedSet,
    queries: Sequence[str],
    *,
    top_k: int,
    rerank_top: int = 0,
    nearest: Nearest | None = None,
) -> list[list[Hit]]:
    """The best `top_k` rows for each query, best first.

    `rerank_top`: how many candidates the fusion encoder orders anew (score = log-odds of a match + cosine /
    temperature; the published CCLM orders by the logit of "match" alone); 0: none. `nearest`: None: all rows are looked
    at.

    Raises:
        ConfigError: another model, a query of which no token is left, or images that are gone.
    """
    searcher = Searcher(opened=opened, embedded=embedded, nearest=nearest or exact(embedded.feature_NE))
    found = searcher.best(queries, max(top_k, rerank_top))
    if rerank_top:
        source = embedded.source()  # once: it looks at every file of the set
        found = [
            look_again(opened, source, query, hits[:rerank_top]) for query, hits in zip(queries, found, strict=True)
        ]
    return [hits[:top_k] for hits in found]


@torch.inference_mode()
def look_again(opened: OpenedModel, source: EmbedSource, query: str, hits: Sequence[Hit]) -> list[Hit]:
    """Order images by the fusion encoder and the cosine together."""
    model = opened.model
    images_K3HW = torch.stack([opened.pixels(source.image(hit.unit)) for hit in hits]).to(model.device, model.dtype)
    ids_1L = opened.tokens([query]).ids_BL.to(model.device)
    logits_K2 = model.score_all(images_K3HW, ids_1L)[:, 0].float().cpu()
    odds_K = logits_K2[:, 1] - logits_K2[:, 0]
    score_K = odds_K + torch.tensor([hit.cosine for hit in hits]) / float(model.temperature())
    order = score_K.argsort(descending=True, stable=True).tolist()
    return [replace(hits[place], match=float(odds_K[place].sigmoid())) for place in order]


def text_table(hits: Sequence[Hit]) -> str:
    """Lines for a terminal."""
    width = max((len(hit.key) for hit in hits), default=0)
    return "\n".join(
        f"{rank:3}  {hit.cosine:6.3f}  {'' if hit.match is None else f'{hit.match:5.1%}  '}{hit.key:{width}}"
        f"{'' if hit.text is None else f'  {hit.text}'}".rstrip()
        for rank, hit in enumerate(hits, start=1)
    )


def page(queries: Sequence[str], found: Sequence[Sequence[Hit]], source: EmbedSource) -> str:
    """One self-contained HTML page with small images."""
    parts = []
    for query, hits in zip(queries, found, strict=True):
        figures = "".join(
            f'<figure><img alt="" src="{thumbnail_uri(source.image(hit.unit))}"><figcaption>{rank} · {hit.cosine:.3f}'
            f"{'' if hit.match is None else f' · {hit.match:.0%}'}<br>{html.escape(hit.key)}</figcaption></figure>"
            for rank, hit in enumerate(hits, start=1)
        )
        parts.append(f"<h2>{html.escape(query)}</h2><div>{figures}</div>")
    style = (
        "body{font:14px system-ui;margin:2rem;color:#222}div{display:flex;flex-wrap:wrap;gap:1rem}"
        "figure{margin:0;width:192px}img{max-width:192px}figcaption{overflow-wrap:anywhere;color:#555}"
    )
    return f"<!doctype html><meta charset=utf-8><title>search</title><style>{style}</style>{''.join(parts)}\n"
