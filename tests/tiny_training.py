"""Settings of a run → its typed configuration, its training module and its data, for tests that do the steps."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch

from cclm.config import RunConfig
from cclm.data.batch import Batch
from cclm.data.loader import StepDataset
from cclm.data.tokens import load_tokenizer
from cclm.distributed.collectives import SINGLE, Collectives
from cclm.files.node import node_of
from cclm.files.typed import Converter
from cclm.recipe.read import in_table_order, kinds_of, read_recipe
from cclm.run.signals import StopRequest
from cclm.train.build import open_run
from cclm.train.loop import train
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


def run_to_the_end(config: RunConfig, **options: Any) -> bool:
    """Train as far as the run goes; return whether it is done. `options` are `open_run`'s."""
    with open_run(config, StopRequest(), **options) as run:
        assert run is not None
        return train(run)


@cache
def read(path: str) -> RunConfig:
    """Return the typed tree of a YAML file of settings."""
    return read_recipe(["--recipe", path])


def module_of(config: RunConfig, collectives: Collectives = SINGLE, **options: Any) -> CrossViewTraining:
    """Build a run's training module; `options` are `build_module`'s."""
    tokenizer = load_tokenizer(config.data.tokenizer, config.data.normalise)
    return build_module(config, make_views(config.views), tokenizer, collectives, **options)


@cache
def dataset(path: str, rank: int, world_size: int) -> StepDataset:
    """Open a rank's data, by a YAML file of settings."""
    return dataset_of(read(path), rank, world_size)


def batch_of(path: str, step: int, rank: int, world_size: int) -> Batch:
    """Return a rank's share of a step."""
    return dataset(path, rank, world_size)[step]


def module_on_one_thread(path: str, collectives: Collectives) -> CrossViewTraining:
    """Build the training module of a YAML file of settings; sums then are rounded alike everywhere."""
    torch.set_num_threads(1)
    return module_of(read(path), collectives)


def dataset_of(config: RunConfig, rank: int = 0, world_size: int = 1) -> StepDataset:
    """Open a rank's data."""
    tokenizer = load_tokenizer(config.data.tokenizer, config.data.normalise)
    return open_dataset(make_views(config.views), config.data, tokenizer, config.seed, rank, world_size)
