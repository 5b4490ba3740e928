"""A recipe: which shard sets to build, out of which corpora. All complaints about one come at once."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from cclm.errors import ConfigError
from cclm.files.reading import read_yaml
from cclm.types import View
from shards.corpora.table import CORPORA, corpus_of
from shards.fields import read_fields, unknown_names
from shards.settings import DuplicateSettings, FilterSettings, ImageSettings, SamplingSettings


@dataclass(frozen=True, kw_only=True)
class SetRecipe:
    """One shard set."""

    view: View
    """image_text or text_pair; must be the corpus's."""
    corpus: str
    """Name of a corpus in shards/corpora/table.py."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the corpus's class."""
    num_shards: int = 8
    """Records are spread over so many shards; a training stream wants at least as many as it has lanes."""
    pairs_per_block: int = 4096
    """Text pairs in one tar member (text sets only)."""
    licences: Mapping[str, str] = field(default_factory=dict)
    """Licence by source, for the statistics of text sets (pictures carry their own)."""
    max_bad_fraction: float = 0.0
    """The build fails when a larger part of the records is refused."""
    seed: int = 0
    """Of the order of records."""
    images: ImageSettings = field(default_factory=ImageSettings)
    """How pictures are stored (image sets only)."""
    filters: FilterSettings = field(default_factory=FilterSettings)
    """What a record must be like."""
    duplicates: DuplicateSettings = field(default_factory=DuplicateSettings)
    """Which records count as the same."""
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    """How many records of each language stay."""
    records_per_chunk: int = 0
    """Records that one process reads and keeps at a time; a killed build reads at most so many again. 0: 1,024
    pictures, 16,384 texts."""

    @property
    def chunk_records(self) -> int:
        """Records of a chunk."""
        return self.records_per_chunk or (1024 if self.view is View.IMAGE_TEXT else 16384)


_SETTINGS: Final[Mapping[str, type[Any]]] = {
    "images": ImageSettings,
    "filters": FilterSettings,
    "duplicates": DuplicateSettings,
    "sampling": SamplingSettings,
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All sets of one recipe file."""

    sets: Mapping[str, SetRecipe]
    """By name, which is also the folder's name and the shards' prefix."""


def load_recipe(path: Path | str, packages: Path | None = None) -> Recipe:
    """Read and check a recipe.

    Args:
        path: a YAML file with `sets: {NAME: {view: …, corpus: …, options: {…}, …}}`.
        packages: given to corpora that have an argument `packages` and no option of that name.

    Raises:
        ConfigError: naming everything that is wrong with it.
    """
    path = Path(path)
    document = read_yaml(path, expected="a recipe file", do="shards/recipes/demo.yaml is an example.")
    complaints: list[str] = []
    sets: dict[str, SetRecipe] = {}
    if not isinstance(document, dict) or not isinstance(document.get("sets"), dict) or not document["sets"]:
        complaints.append("no `sets:` with at least one set")
    else:
        complaints += unknown_names(document, ["sets"], "")
        for name, entry in document["sets"].items():
            if not re.fullmatch(r"[\w-]{1,100}", str(name)) or not isinstance(name, (str, int)):
                complaints.append(
                    f"sets.{name}: not a name of letters, digits, _ and - (a folder and the keys of shards have it)"
                )
            sets[str(name)] = _set_of(str(name), entry, packages, complaints)
    if complaints:
        raise ConfigError(
            expected="a recipe without mistakes",
            got="; ".join(complaints),
            do="Correct all of them; shards/recipes/demo.yaml is an example.",
            where=str(path),
        )
    return Recipe(sets=sets)


def _set_of(name: str, entry: object, packages: Path | None, complaints: list[str]) -> SetRecipe:
    if not isinstance(entry, dict):
        complaints.append(f"{name}: not a map")
        return SetRecipe(view=View.IMAGE_TEXT, corpus="")
    known = {item.name for item in fields(SetRecipe)}
    needed = {item.name for item in fields(SetRecipe) if item.default is MISSING and item.default_factory is MISSING}
    complaints += unknown_names(entry, known, f"{name}.")
    complaints += [f"{name}.{key}: missing" for key in sorted(needed - set(entry))]
    values = {key: value for key, value in entry.items() if key in known}
    complaints += _wrong_values(name, values)
    for key, kind in _SETTINGS.items():
        if key in values:
            values[key] = read_fields(kind, values[key], f"{name}.{key}", complaints)
    corpus = str(values.get("corpus"))
    if corpus in CORPORA:
        view, kind = CORPORA[corpus]
        if values.get("view") != view.value:
            complaints.append(f"{name}.view: corpus {corpus} yields {view.value}, not {values.get('view')}")
        options = dict(values.get("options") or {})
        parameters = inspect.signature(kind).parameters
        if packages is not None and "packages" in parameters:
            options.setdefault("packages", str(packages))
        complaints += _wrong_options(name, corpus, options, parameters)
        return SetRecipe(**{**values, "view": view, "options": options})
    if "corpus" in values:
        complaints.append(f"{name}.corpus: {corpus!r} is not one of {', '.join(CORPORA)}")
    return SetRecipe(view=View.IMAGE_TEXT, corpus=corpus)


def _wrong_options(
    name: str, corpus: str, options: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter]
) -> list[str]:
    required = [key for key, parameter in parameters.items() if parameter.default is inspect.Parameter.empty]
    wrong = unknown_names(options, parameters, f"{name}.options.")
    wrong += [f"{name}.options.{key}: missing" for key in required if key not in options]
    if not wrong:
        try:
            corpus_of(corpus, options)
        except ConfigError as error:
            wrong.append(f"{name}.options: {error.got}")
    return wrong


def _wrong_values(name: str, values: Mapping[str, Any]) -> list[str]:
    wrong = [
        f"{name}.{key}: {values[key]!r} is not a whole number of at least {least}"
        for key, least in (("num_shards", 1), ("pairs_per_block", 1), ("seed", 0), ("records_per_chunk", 0))
        if key in values and (type(values[key]) is not int or values[key] < least)
    ]
    fraction = values.get("max_bad_fraction", 0)
    if not isinstance(fraction, (int, float)) or not 0 <= fraction <= 1:
        wrong.append(f"{name}.max_bad_fraction: {fraction!r} is not between 0 and 1")
    wrong += [
        f"{name}.{key}: {values[key]!r} is not a map"
        for key in ("options", "licences")
        if not isinstance(values.get(key, {}), dict)
    ]
    return wrong
