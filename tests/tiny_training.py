"""Settings of a run → its typed configuration, its training module and its data, for tests that do the steps."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from cclm.config import RunConfig
from cclm.data.loader import StepDataset
from cclm.data.tokens import load_tokenizer
from cclm.distributed.collectives import SINGLE, Collectives
from cclm.files.node import node_of
from cclm.files.typed import Converter
from cclm.recipe.read import in_table_order, kinds_of, read_recipe
from cclm.train.network import build_module
from cclm.train.step import CrossViewTraining
from cclm.views.table import VIEWS, Table, make_views
from cclm.views.view import open_dataset


def as_config(settings: Mapping[str, Any], table: Table = VIEWS) -> RunConfig:
    """Return the typed tree."""
    converter = Converter(kinds_of(table))
    config: RunConfig = converter.convert(in_table_order(node_of(settings, "settings"), table), RunConfig)
    assert not converter.problems
    return config


@cache
def read(path: str) -> RunConfig:
    """Return the typed tree of a YAML file of settings."""
    return read_recipe(["--recipe", path])


def module_of(config: RunConfig, collectives: Collectives = SINGLE, **options: Any) -> CrossViewTraining:
    """Build a run's training module; `options` are `build_module`'s."""
    tokenizer = load_tokenizer(config.data.tokenizer, config.data.normalise)
    return build_module(config, make_views(config.views), tokenizer, collectives, **options)


def dataset_of(config: RunConfig, rank: int = 0, world_size: int = 1) -> StepDataset:
    """Open a rank's data."""
    tokenizer = load_tokenizer(config.data.tokenizer, config.data.normalise)
    return open_dataset(make_views(config.views), config.data, tokenizer, config.seed, rank, world_size)
