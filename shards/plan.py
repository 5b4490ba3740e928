"""Which record goes into which shard: a pure function of the records' keys and the seed."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from cclm.errors import DataError
from cclm.shardfile.codec import canonical_json
from cclm.types import ImageTextRecord, TextPair, View
from shards.draft import Draft, Made, Part
from shards.recipe import SetRecipe


@dataclass(frozen=True, kw_only=True)
class SetPlan:
    """The drafts of a set, in the order of its shards."""

    name: str
    recipe: SetRecipe
    shards: Sequence[Sequence[Draft]]
    digest: str
    """Hash of the recipe, of every part's stamp and of every draft's key: equal digests give equal sets."""

    @property
    def num_records(self) -> int:
        """Records in: what is written plus what is refused."""
        return sum(len(drafts) for drafts in self.shards)


def plan_set(name: str, recipe: SetRecipe, parts: Iterable[Part]) -> SetPlan:
    """Deal the drafts of a corpus to shards.

    The order is by a keyed hash of each key: a permutation that neighbours in the corpus do not survive, that does
    not depend on the order in which the corpus yields, and that is the same in every version of every library.
    Text drafts of one key become one; an image's key that comes again is refused when its record is made (reason
    key_twice).
    """
    parts = list(parts)
    drafts = (draft for part in parts for draft in part.read())
    if recipe.view is View.TEXT_PAIR:
        unique = _one_a_group(drafts)
    else:
        seen: set[str] = set()
        unique = [_once(draft, seen) for draft in drafts]
    seed = f"{recipe.seed}:{name}".encode()
    unique.sort(key=lambda draft: hashlib.blake2b(draft.key.encode("utf-8", "surrogatepass"), key=seed[:64]).digest())
    digest = hashlib.sha256(canonical_json(recipe_json(recipe)))
    for part in parts:
        digest.update(f"{part.name}\0{part.stamp}\0".encode("utf-8", "surrogatepass"))
    for draft in unique:
        digest.update(f"{draft.key}\0".encode("utf-8", "surrogatepass"))
    count = min(recipe.num_shards, len(unique))
    bounds = [len(unique) * shard // count for shard in range(count + 1)] if count else [0]
    shards = [unique[start:stop] for start, stop in itertools.pairwise(bounds)]
    return SetPlan(name=name, recipe=recipe, shards=shards, digest=digest.hexdigest())


def recipe_json(recipe: SetRecipe) -> dict[str, Any]:
    """Return a set's recipe as JSON values. Where packages lie is left out: it does not change what is built."""
    document = asdict(recipe)
    document["view"] = recipe.view.value
    document["options"] = {
        key: str(value) if not isinstance(value, (str, int, float, bool, list, dict, type(None))) else value
        for key, value in recipe.options.items()
        if key != "packages"
    }
    return document


def _one_a_group(drafts: Iterable[Draft]) -> list[Draft]:
    groups: dict[str, list[Draft]] = {}
    for draft in drafts:
        groups.setdefault(draft.key, []).append(draft)
    return [
        of_one[0] if len(of_one) == 1 else replace(of_one[0], make=partial(_make_all, of_one))
        for of_one in groups.values()
    ]


def _make_all(drafts: Sequence[Draft]) -> list[TextPair]:
    pairs: list[TextPair] = []
    for draft in drafts:
        made = draft.make()
        assert not isinstance(made, ImageTextRecord)
        pairs += made
    return pairs


def _once(draft: Draft, seen: set[str]) -> Draft:
    if draft.key in seen:
        return replace(draft, make=partial(_refuse_again, draft.key))
    seen.add(draft.key)
    return draft


def _refuse_again(key: str) -> Made:
    raise DataError(
        reason="key_twice",
        expected="each key once in a set",
        got=f"{key!r} again",
        do="Give the records keys of their own.",
    )
