"""A recipe: which shard sets to build, out of which corpora, and what is to be done with their records.

All problems of one come at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from cclm.files.atomic import file_sha256
from cclm.files.document import read_document
from cclm.files.node import Node, plain
from cclm.files.reading import raise_problems, with_override
from cclm.files.typed import Converter, nearest, options_of
from cclm.rows.guard import mistaken
from cclm.shardfile.schema import KEY_PATTERN
from cclm.shardfile.scores import SCORE_FILES, StoredScores
from cclm.types import Bounds, Count, LocalPath, Positive, Share, View
from shards.corpora.files import named_files
from shards.corpora.table import CORPORA

MOST_LETTERS = 100
"""Of a set's name: its keys and the names of its shards hold it, and more."""
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")

Ratio = Annotated[float, Bounds(least=1)]
Percentile = Annotated[int, Bounds(least=0, most=99)]


@dataclass(frozen=True, kw_only=True)
class ImageSettings:
    """How images are stored. All at their defaults: copied bit for bit."""

    short_side: Count = 0
    """Pixels of the shorter side; larger images are scaled down (Lanczos), smaller ones stay. 0: never scaled."""
    format: Literal["", "jpg", "png", "webp"] = ""
    """Every image becomes one; empty: each keeps its own."""
    quality: Annotated[int, Bounds(least=1, most=100)] = 90
    """Of JPEG and WebP that are written anew."""


@dataclass(frozen=True, kw_only=True)
class FilterSettings:
    """What a record must be like to be kept. At its default, a filter lets everything pass."""

    min_side: Count = 0
    """Pixels of an image's shorter side, as the corpus had it."""
    max_aspect: Ratio | None = None
    """Longer side by shorter side."""
    min_characters: Count = 0
    """Of a caption or sentence, without spaces at its ends."""
    max_characters: Positive | None = None
    """Of a caption or sentence."""
    max_length_ratio: Ratio | None = None
    """Of a pair: characters of the longer sentence by those of the shorter."""
    max_non_letters: Share | None = None
    """Share of characters that are neither letters, marks nor spaces: digits, signs, emoji."""
    min_language_probability: Share | None = None
    """That a text is in its declared language (py3langid); languages that the model does not know are not judged."""
    language_characters: Count = 20
    """Shorter texts are not judged by language: there is too little to go by."""
    min_score: float | None = None
    """Margin score of a pair; pairs without a score pass."""
    model_scores: LocalPath | None = None
    """Folder of `cclm score`: what `min_score_percentile` is a percentile of. Pairs without a score are refused."""
    min_score_percentile: Percentile = 0
    """Of a hundred pairs of a language, so many with the lowest scores are refused (of captions, each alone)."""
    min_score_percentiles: Mapping[str, Percentile] = field(default_factory=dict, hash=False)
    """The same for some languages, and for pairs by both languages in alphabetical order: {de: 30, de-en: 10}."""
    blocked_words: LocalPath | None = None
    """File of words and phrases, one a line; a text that has one is refused."""
    benchmark_images: LocalPath | None = None
    """Folder of a benchmark's test images; images that look like one are refused."""
    benchmark_distance: Annotated[int, Bounds(least=0, most=16)] = 4
    """Bits of 64 in which an image's perceptual hash may differ from that of a test image to look like it."""
    benchmark_texts: tuple[LocalPath, ...] = ()
    """Files of a benchmark's test sentences, one a line; texts that are equal (without case, punctuation, spacing) are
    refused."""

    def validation_errors(self) -> Iterator[str]:
        """Yield what would do nothing."""
        if self.model_scores is None and (self.min_score_percentile or self.min_score_percentiles):
            yield "min_score_percentile and min_score_percentiles need model_scores, the folder of `cclm score`"

    @cached_property
    def are_off(self) -> bool:
        """Whether every record passes: then a million of them need not ask each filter."""
        return self == FilterSettings()


def content_hash(settings: FilterSettings) -> str:
    """Return a hash of what the filters' files hold: it decides what is built, as the recipe does.
    ConfigError: one of them does not exist, or a folder holds no image."""
    files = [Path(name) for name in (settings.blocked_words, *settings.benchmark_texts) if name]
    if settings.model_scores:
        scores = StoredScores(Path(settings.model_scores))
        files += [scores.folder / name for name in SCORE_FILES]
    if settings.benchmark_images:
        files += named_files(Path(settings.benchmark_images), IMAGE_SUFFIXES).values()
    digest = hashlib.sha256()
    for path in files:
        if not path.exists():
            mistaken("a file or folder that a filter names", "no such", "Correct the recipe.", path)
        digest.update(bytes.fromhex(file_sha256(path)))
    return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class DuplicateSettings:
    """Which records count as the same. Of those, the first in the order of the set stays."""

    exact: bool = False
    """The same image bytes; the same two sentences in the same languages (without case and spacing)."""
    near: bool = False
    """Images of a like perceptual hash (imagehash); pairs of like wording (MinHash, rensa)."""
    distance: Annotated[int, Bounds(least=0, most=7)] = 3
    """Bits of 64 in which the hashes of near-duplicate images may differ."""
    similarity: Annotated[float, Bounds(least=0.5, most=1)] = 0.8
    """Jaccard similarity of the character 4-grams of near-duplicate pairs (estimated, standard error about 0.05)."""


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """Fewer records of large languages. A record's label is its languages: "de-en" for a pair, "de+en" for captions."""

    temperature: Ratio = 1.0
    """A label with n records keeps about c · n ** (1 / temperature): 1 keeps proportions, more flattens them."""
    records: Positive | None = None
    """About how many to keep in all, which sets c; None: the largest c at which the smallest label is kept whole."""


@dataclass(frozen=True, kw_only=True)
class SetRecipe:
    """One shard set."""

    view: View
    """image_text or text_pair; must be the corpus's."""
    corpus: str
    """Name of a corpus in shards/corpora/table.py."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the corpus's class."""
    num_shards: Positive = 8
    """Records are spread over so many shards; a training stream wants at least as many as it has lanes."""
    pairs_per_block: Positive = 4096
    """Text pairs in one tar member (text sets only)."""
    licences: Mapping[str, str] = field(default_factory=dict)
    """Licence by source, for the statistics of text sets (images carry their own)."""
    max_bad_fraction: Share = 0.0
    """The build fails when a larger part of the records is refused."""
    seed: Count = 0
    """Of the order of records."""
    images: ImageSettings = field(default_factory=ImageSettings)
    """How images are stored (image sets only)."""
    filters: FilterSettings = field(default_factory=FilterSettings)
    """What a record must be like."""
    duplicates: DuplicateSettings = field(default_factory=DuplicateSettings)
    """Which records count as the same."""
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    """How many records of each language stay."""
    records_per_chunk: Count = 0
    """Records that one process reads and keeps at a time; a killed build reads at most so many again. 0: 1,024
    images, 16,384 texts."""

    @property
    def chunk_records(self) -> int:
        """Records of a chunk."""
        return self.records_per_chunk or (1024 if self.view is View.IMAGE_TEXT else 16384)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All sets of one recipe file."""

    sets: Mapping[str, SetRecipe]
    """By name, which is also the folder's name and the shards' prefix."""

    def validation_errors(self) -> Iterator[str]:
        """Yield what is wrong with the sets as a whole."""
        if not self.sets:
            yield "sets: at least one is needed"
        for name in self.sets:
            if not KEY_PATTERN.fullmatch(name) or len(name) > MOST_LETTERS:
                yield (
                    f"sets: {name!r} must be at most {MOST_LETTERS} letters, digits, - and _: it names a folder, and "
                    "keys of records begin with it"
                )


def load_recipe(path: Path | str, packages: Path | None = None) -> Recipe:
    """Read a recipe file, `sets: {NAME: {view: …, corpus: …, options: {…}, …}}`.

    `packages` is given to corpora that have an option `packages` of which the recipe says nothing. ConfigError: naming
    everything that is wrong with it.
    """
    converter = Converter()
    root = read_document(Path(path), converter.problems)
    if root is not None:
        root = _with_packages(root, packages)
        recipe = converter.convert(root, Recipe)
        _check_corpora(root, converter)
    expected, do = "a recipe file without mistakes", "Correct all of them; shards/recipes/demo.yaml is an example."
    raise_problems(converter.problems, str(path), expected, do)
    assert isinstance(recipe, Recipe)
    return recipe


def _entries(root: Node) -> Mapping[str, Mapping[str, Node]]:
    sets = _inside(_inside(root).get("sets"))
    return {name: _inside(entry) for name, entry in sets.items()}


def _inside(node: Node | None) -> dict[str, Node]:
    return node.value if node is not None and isinstance(node.value, dict) else {}


def _with_packages(root: Node, packages: Path | None) -> Node:
    for name, entry in _entries(root).items() if packages is not None else ():
        corpus = entry["corpus"].value if "corpus" in entry else None
        kind = CORPORA[corpus][1] if isinstance(corpus, str) and corpus in CORPORA else None
        if kind is not None and "packages" in options_of(kind) and "packages" not in _inside(entry.get("options")):
            place = Node(value=str(packages), place=root.place)
            root = with_override(root, f"sets.{name}.options.packages", place, Recipe)
    return root


def _check_corpora(root: Node, converter: Converter) -> None:
    """Every set's corpus is one of the table, has the set's view, and takes the set's options."""
    for name, entry in _entries(root).items():
        key, corpus = f"sets.{name}", entry["corpus"].value if "corpus" in entry else None
        if not isinstance(corpus, str):
            continue  # told already
        if corpus not in CORPORA:
            near = nearest(corpus, list(CORPORA), [])
            hint = f"did you mean {near}?" if near else f"known are {', '.join(CORPORA)}"
            converter.add(f"{key}.corpus", f"expected the name of a corpus, got {corpus}; {hint}", "wrong_value")
            continue
        view, kind = CORPORA[corpus]
        if "view" in entry and entry["view"].value != view.value:
            converter.add(f"{key}.view", f"corpus {corpus} yields {view.value}, not {plain(entry['view'])}")
        converter.convert(entry.get("options", Node(value={}, place=root.place)), kind, f"{key}.options")
