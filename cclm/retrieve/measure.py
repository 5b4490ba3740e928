"""Measure an opened model on shard sets: images and texts → tensors → `cclm.evaluate` → results and a gallery."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from cclm.errors import ConfigError
from cclm.evaluate.rerank import RerankRule
from cclm.evaluate.tables import Groups, Results, results_of
from cclm.evaluate.zero_shot import NUM_SHOWN, LanguageQueries, Measurement, RetrievalSet, choose_rerank_rule, measure
from cclm.hub.open import OpenedModel
from cclm.shardfile.reader import ShardSet
from cclm.types import ImageTextRecord, Language, View

Gallery = list[dict[str, Any]]
"""For each shown query: language, text, meaning, and its best images as data URIs with `right`."""


@dataclass(frozen=True, kw_only=True)
class LoadedSet:
    """An image-text set in memory, ready to be measured."""

    folder: Path
    records: Sequence[ImageTextRecord]
    """In the order of the shards; row i of the tensors is record i."""
    tensors: RetrievalSet


def languages_of(groups: Groups) -> list[Language]:
    """Return every language of the groups, once, in order."""
    return list(dict.fromkeys(language for members in groups.values() for language in members))


def load_set(folder: Path, opened: OpenedModel, languages: Sequence[Language]) -> LoadedSet:
    """Read a set of image-text shards; each image's query in a language is its first caption there.

    Raises:
        ConfigError: not an image-text set, or no image has a caption in some language.
        DataError: a broken sample (a set that is measured on has to be whole).
    """
    shards = ShardSet(folder)
    if shards.view is not View.IMAGE_TEXT:
        raise ConfigError(
            where=str(folder), expected="an image-text shard set", got=shards.view.value, do="Give a set of images."
        )
    records = [
        shards.image_text(shard, sample)
        for shard, num_samples in enumerate(shards.samples_per_shard)
        for sample in range(num_samples)
    ]
    shards.close()
    number: dict[str, int] = {}
    identity = [number.setdefault(record.identity or record.key, len(number)) for record in records]
    return LoadedSet(
        folder=folder,
        records=records,
        tensors=RetrievalSet(
            images_CCHW=torch.stack([opened.pixels(record.image) for record in records]),
            identity_C=torch.tensor(identity),
            queries={language: _queries(folder, opened, records, language) for language in languages},
        ),
    )


def _queries(
    folder: Path, opened: OpenedModel, records: Sequence[ImageTextRecord], language: Language
) -> LanguageQueries:
    captions = [
        (row, record.captions[language][0]) for row, record in enumerate(records) if language in record.captions
    ]
    if not captions:
        raise ConfigError(
            where=str(folder),
            expected=f"captions in {language!r}",
            got="none in the whole set",
            do="Take the language out of the groups, or measure on a set that has it.",
        )
    tokens = opened.tokens([text for _, text in captions])
    image_T = torch.tensor([row for row, _ in captions])
    return LanguageQueries(ids_TL=tokens.ids_BL, mask_TL=tokens.mask_BL, image_T=image_T)


def evaluate(
    opened: OpenedModel,
    shards: Path,
    groups: Groups,
    *,
    dev_shards: Path | None = None,
    rerank_groups: Sequence[str] | None = None,
    top_k: int = 0,
    batch_size: int = 256,
    on_language: Callable[[str, str], None] = lambda set_name, language: None,
) -> tuple[Results, Gallery]:
    """Measure a model on `shards`: what results.json holds, and a gallery.

    The re-ranking rule is chosen on `dev_shards` (without it: match + similarity) for `rerank_groups` (None: all), each
    counting the same, so the test set is touched once. `top_k`: candidates to re-rank; 0 does not re-rank.
    `batch_size`: images, texts or pairs per call; larger is not faster on a CPU (caches). `on_language` is told (set
    name, language) as each is done.

    Raises:
        ConfigError: the dev set is the test set, or a group that is to decide does not exist.
    """
    began = time.monotonic()
    if dev_shards is not None:
        check_other_test_set(shards, dev_shards)

    def measured(folder: Path, of: Groups, matching: Sequence[Language] = ()) -> tuple[LoadedSet, Measurement]:
        loaded = load_set(folder, opened, languages_of(of))
        options: dict[str, Any] = {"top_k": top_k, "matching_languages": matching, "batch_size": batch_size}
        return loaded, measure(
            opened.model, loaded.tensors, **options, on_language=lambda language: on_language(folder.name, language)
        )

    rule = RerankRule() if top_k else None
    dev: Results | None = None
    if dev_shards is not None:
        deciding, tried = deciding_groups(groups, rerank_groups), list[tuple[RerankRule, float]]()
        loaded, found = measured(dev_shards, deciding)
        if top_k:
            rule, tried = choose_rerank_rule(found, list(deciding.values()))
        dev = _results(loaded, found, deciding, rule)
        dev["tried_rules"] = [{**asdict(one), "objective": round(value, 2)} for one, value in tried]
    loaded, found = measured(shards, groups, next(iter(groups.values())))
    results = _results(loaded, found, groups, rule)
    results["model"] = model_facts(opened)
    if dev is not None:
        results["dev"] = dev
    results["seconds"] = {"evaluate": round(time.monotonic() - began, 1)}
    return results, gallery_of(loaded, found)


def model_facts(opened: OpenedModel) -> dict[str, Any]:
    """Return which weights were measured: `origin`, `num_parameters` and, if known, `step` and `checkpoint`."""
    found: dict[str, Any] = {"origin": str(opened.origin), "num_parameters": opened.model.num_parameters()}
    if opened.checkpoint is not None:
        found |= {"step": opened.checkpoint.step, "checkpoint": opened.checkpoint.identity}
    return found


def check_other_test_set(shards: Path, dev_shards: Path) -> None:
    """Raise `ConfigError` if both are one folder: what was chosen there would be measured there."""
    if shards.resolve() == dev_shards.resolve():
        raise ConfigError(
            where=str(dev_shards),
            expected="a dev set with other images than the set that is measured",
            got="the same set twice",
            do="Hold images out for --choose-rerank-on, or leave it away: then both weights are 1.",
        )


def deciding_groups(groups: Groups, names: Sequence[str] | None) -> dict[str, Sequence[str]]:
    """Return the groups that decide a choice: the named ones, or all (ConfigError: there is no group of that name)."""
    chosen = list(groups) if names is None else list(names)
    unknown = [name for name in chosen if name not in groups]
    if unknown or not chosen:
        raise ConfigError(
            where="--rerank-groups",
            expected=f"some of the groups {', '.join(groups)}",
            got=", ".join(unknown) or "none",
            do="Name groups of the groups file.",
        )
    return {name: groups[name] for name in chosen}


def _results(loaded: LoadedSet, found: Measurement, groups: Groups, rule: RerankRule | None) -> Results:
    return {
        **results_of(found, groups, rule),
        "set": {"shards": str(loaded.folder), "num_images": len(loaded.records)},
    }


def gallery_of(loaded: LoadedSet, found: Measurement) -> Gallery:
    """Return one query per language with its best images by cosine, drawn by a seed and not by its result."""
    generator = torch.Generator().manual_seed(0)
    shown = []
    for language, result in found.languages.items():
        rows = loaded.tensors.queries[language].image_T
        query = int(torch.randint(len(rows), (1,), generator=generator))
        record = loaded.records[int(rows[query])]
        wanted = record.identity or record.key
        best = [loaded.records[index] for index in result.best_TK[query, :NUM_SHOWN].tolist()]
        shown.append(
            {
                "language": language,
                "text": record.captions[language][0],
                "meaning": record.captions.get("en", [""])[0],
                "rank": int(result.rank_by_direction["t2i"][query]) + 1,
                "images": [{"uri": data_uri(one), "right": (one.identity or one.key) == wanted} for one in best],
            }
        )
    return shown


def data_uri(record: ImageTextRecord) -> str:
    """Return an image as a data URI, byte by byte as it lies in the shard."""
    kind = {"jpg": "jpeg"}.get(record.image_format, record.image_format)
    return f"data:image/{kind};base64,{base64.b64encode(record.image).decode('ascii')}"
