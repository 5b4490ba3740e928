"""What a build is told to do with one set, and the hash by which it knows that it is still the same build."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from cclm.files.hints import nearest
from cclm.rows.guard import mistaken
from cclm.shardfile.codec import canonical_json
from shards.benchmark import read_benchmarks
from shards.corpora.files import accounting
from shards.corpora.table import corpus_of
from shards.filters import read_scores
from shards.parts import Part
from shards.recipe import SetRecipe, content_hash


@dataclass(frozen=True, kw_only=True)
class SetPlan:
    """A set to build."""

    name: str
    recipe: SetRecipe
    parts: Sequence[Part]
    digest: str
    """Hash of the recipe, of the files its filters read, and of every part's name and stamp: equal digests give equal
    sets."""
    left_out: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Files under the corpus's paths that are not read: why -> {"files": how many, "first": one of them}."""

    @property
    def seed(self) -> bytes:
        """What the order of records is drawn from."""
        return f"{self.recipe.seed}:{self.name}".encode()


def plan_corpus(name: str, recipe: SetRecipe) -> SetPlan:
    """Return the plan of a set, with an account of the files that its corpus does not read.

    ConfigError: the files are not what the recipe says.
    """
    with accounting() as account:
        plan = plan_set(name, recipe, corpus_of(recipe.corpus, recipe.options).parts())
        read_benchmarks(recipe.filters)
        check_scores(recipe)
    return replace(plan, left_out=account.kinds())


def check_scores(recipe: SetRecipe) -> None:
    """Check that the filters' scores are of such a set, and have the languages that the recipe names."""
    if recipe.filters.model_scores is None:
        return
    scores = read_scores(recipe.filters.model_scores)
    if scores.summary.view != recipe.view.value:
        do = "Score a set of this view (`cclm score`), or correct filters.model_scores."
        mistaken(f"scores of {recipe.view.value} samples", f"of {scores.summary.view}", do, scores.folder)
    known = list(scores.summary.languages)
    for label in recipe.filters.min_score_percentiles:
        if label not in known:
            near = nearest(label, known, []) or ", ".join(known)
            do = "Pairs have both languages in alphabetical order (de-en)."
            mistaken("languages that have scores", f"{label} in min_score_percentiles (nearest: {near})", do)


def plan_set(name: str, recipe: SetRecipe, parts: Sequence[Part]) -> SetPlan:
    """Return the plan of a set. ConfigError: two parts have one name, or a file of the filters is missing."""
    names = [part.name for part in parts]
    if len(set(names)) != len(names):
        again, do = max(names, key=names.count), "Give the files of the corpus different names."
        mistaken("parts with names of their own", f"{again!r} again", do, name)
    digest = hashlib.sha256(canonical_json([recipe_json(recipe), content_hash(recipe.filters)]))
    for part in parts:
        digest.update(f"{part.name}\0{part.stamp}\0".encode("utf-8", "surrogatepass"))
    return SetPlan(name=name, recipe=recipe, parts=parts, digest=digest.hexdigest())


def recipe_json(recipe: SetRecipe) -> dict[str, Any]:
    """Return a set's recipe as JSON values. Where packages lie is left out: it does not change what is built."""
    options = {
        key: value if isinstance(value, (str, int, float, bool, list, dict, type(None))) else str(value)
        for key, value in recipe.options.items()
        if key != "packages"
    }
    return asdict(recipe) | {"view": recipe.view.value, "options": options}
