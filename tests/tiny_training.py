"""Settings of a run → its typed configuration, its training module and its data, for tests that do the steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml

from cclm.config import RunConfig
from cclm.data.loader import StepDataset
from cclm.data.tokens import load_tokenizer
from cclm.distributed.collectives import SINGLE, Collectives
from cclm.train.step import CrossViewTraining
from cclm.views.table import VIEWS, Table, make_views
from cclm.views.view import open_dataset
from pretrain.build import build_module


def as_config(settings: Mapping[str, Any], table: Table = VIEWS) -> RunConfig:
    """Return the typed tree: views in the order of the table, those set to None left out."""
    given = settings["views"]
    views = {name: typed(entry.config, given[name]) for name, entry in table.items() if given.get(name) is not None}
    assert not set(given) - set(table), "views that the table does not have"
    config: RunConfig = typed(
        RunConfig, {name: value for name, value in settings.items() if name != "views"} | {"views": views}
    )
    return config


@cache
def read(path: str) -> RunConfig:
    """Return the typed tree of a YAML file of settings."""
    return as_config(yaml.safe_load(Path(path).read_text(encoding="utf-8")))


def typed(kind: Any, value: Any) -> Any:
    """Return plain values as what a dataclass's annotations say."""
    if is_dataclass(kind) and isinstance(value, Mapping):
        make: Any = kind
        hints = get_type_hints(kind)
        return make(**{name: typed(hints[name], item) for name, item in value.items()})
    if get_origin(kind) in (Union, UnionType):
        (kind,) = [arm for arm in get_args(kind) if arm is not type(None)][:1]
        return None if value is None else typed(kind, value)
    if get_origin(kind) is tuple:
        arms = get_args(kind)
        return tuple(typed(arms[0 if arms[-1] is ... else place], item) for place, item in enumerate(value))
    if isinstance(value, Mapping) and get_args(kind):
        return {name: typed(get_args(kind)[1], item) for name, item in value.items()}
    return value


def module_of(config: RunConfig, collectives: Collectives = SINGLE, **options: Any) -> CrossViewTraining:
    """Build a run's training module; `options` are `build_module`'s."""
    tokenizer = load_tokenizer(config.data.tokenizer, config.data.normalise)
    return build_module(config, make_views(config.views), tokenizer, collectives, **options)


def dataset_of(config: RunConfig, rank: int = 0, world_size: int = 1) -> StepDataset:
    """Open a rank's data."""
    tokenizer = load_tokenizer(config.data.tokenizer, config.data.normalise)
    return open_dataset(make_views(config.views), config.data, tokenizer, config.seed, rank, world_size)
