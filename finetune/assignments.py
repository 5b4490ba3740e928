"""`python -m finetune assign SHARDS --to FILE`: what MaRVL's optional domain pre-training learns from.

    image-text shard set ─▶ a caption of each image, in one of its languages
    groups of 128 images ─▶ a similar one beside the caption's, or two   (features of images: `cclm embed`)
                         ─▶ {"id", "images": [first, second], "text", "label", "language"}

Two in three captions stand with their own image (label 0: it is the first, 1: the second) and a similar one, the others
with two that are similar to it, but not it (label 2), as in the code that CCLM published (its task nlvr_domain): there
drawn in each step among the images of a GPU, here once, so that the number of ranks changes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cclm.errors import ConfigError
from cclm.files.atomic import make_folder, publish, temporary_path
from cclm.shardfile.reader import ShardSet
from cclm.types import View

GROUP: Final = 128
"""Images among which a similar one is drawn: the rows of a GPU in the published code."""
TEMPERATURE: Final = 0.07
"""Of the softmax over cosines that it is drawn from, as published."""
LEAST: Final = 3
"""Images, so that there are two beside one's own."""


@dataclass(frozen=True, kw_only=True)
class Captioned:
    """An image with the caption that stands for it."""

    key: str
    identity: str
    language: str
    text: str


def write_assignments(shards: Path, features: Path | None, path: Path, *, languages: Sequence[str], seed: int) -> int:
    """Write a row for each image of a shard set, and return how many.

    Args:
        shards: an image-text set.
        features: what `cclm embed` wrote of it; None: images are drawn alike.
        path: a file of JSON lines, whole or not there.
        languages: of captions; none: all.
        seed: of all draws.

    Raises:
        ConfigError: it holds no images, too few with a caption in these languages, or features of other images.
    """
    generator = np.random.default_rng(seed)
    chosen = list(_captioned(shards, languages, generator))
    if len(chosen) < LEAST:
        got, do = f"{len(chosen)} with a caption in {', '.join(languages) or 'any language'}", "Name another set."
        raise ConfigError(where=str(shards), expected=f"at least {LEAST} images", got=got, do=do)
    feature_NE = np.zeros((len(chosen), 1), np.float32) if features is None else _features(features, chosen)
    order = generator.permutation(len(chosen))
    make_folder(path.parent)
    count = 0
    with temporary_path(path).open("w", encoding="utf-8") as file:
        for group in np.array_split(order, max(1, len(order) // GROUP)):
            for row in assigned([chosen[number] for number in group], feature_NE[group], generator):
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                count += 1
    publish(temporary_path(path), path)
    return count


def assigned(
    group: Sequence[Captioned], feature_NE: NDArray[Any], generator: np.random.Generator
) -> Iterator[dict[str, Any]]:
    """Yield a row for each image of a group; one whose group has not two others to draw is left out."""
    similarity_NN = feature_NE @ feature_NE.T / TEMPERATURE
    identities = np.array([one.identity for one in group])
    for number, own in enumerate(group):
        others = np.flatnonzero(identities != own.identity)  # what shows the same is not wrong
        if len(others) < LEAST - 1:
            continue
        weights = np.exp(similarity_NN[number, others] - similarity_NN[number, others].max())
        first, second = (group[one].key for one in _draw(others, weights, generator))
        label = int(generator.integers(3))
        images = ([own.key, first], [first, own.key], [first, second])[label]
        yield {"id": own.key, "images": images, "text": own.text, "label": label, "language": own.language}


def _draw(others: NDArray[Any], weights: NDArray[Any], generator: np.random.Generator) -> NDArray[Any]:
    """Draw two without putting the first one back: the largest of log-weight + Gumbel noise."""
    noisy = np.log(np.maximum(weights, np.finfo(np.float64).tiny)) + generator.gumbel(size=len(others))
    return others[np.argsort(-noisy)[:2]]


def _captioned(folder: Path, languages: Sequence[str], generator: np.random.Generator) -> Iterator[Captioned]:
    shards = ShardSet(folder)
    if shards.view is not View.IMAGE_TEXT:
        raise ConfigError(where=str(folder), expected="a set of images", got=shards.view.value, do="Name another set.")
    for shard, count in enumerate(shards.samples_per_shard):
        for sample in range(count):
            record = shards.image_text(shard, sample)
            names = [
                name for name in sorted(record.captions) if record.captions[name] and name in (languages or (name,))
            ]
            if names:
                language = names[int(generator.integers(len(names)))]
                texts = record.captions[language]
                text = texts[int(generator.integers(len(texts)))]
                yield Captioned(key=record.key, identity=record.identity or record.key, language=language, text=text)


def _features(folder: Path, chosen: Sequence[Captioned]) -> NDArray[Any]:
    """Return the features of images, in their order."""
    from cclm.retrieve.search import load_embedded

    found = load_embedded(folder)
    places = {key: number for number, key in enumerate(found.key)}
    missing = [one.key for one in chosen if one.key not in places]
    if missing:
        got, do = (
            f"no such image as {missing[0]} ({len(missing):,} are missing)",
            "Embed this shard set: cclm embed MODEL SHARDS --to FOLDER.",
        )
        raise ConfigError(where=str(folder), expected="features of all its images", got=got, do=do)
    features: NDArray[Any] = found.feature_NE.numpy()[[places[one.key] for one in chosen]]
    return features
