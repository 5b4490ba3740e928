"""Epochs of fine-tuning in steps: how many rows there are decides; none of them: what is left then. No torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from cclm.config import RunConfig
from cclm.data.config import ViewConfig
from cclm.errors import ConfigError
from cclm.files.reading import read_yaml
from cclm.shardfile.remote import open_set
from cclm.views.annotated.options import AnnotatedConfig
from cclm.views.annotated.rows import read_rows


def num_samples(view: ViewConfig) -> int:
    """Return how many samples the sources of a view hold (the errors of who reads them)."""
    if isinstance(view, AnnotatedConfig):
        files = {name: view.path(source.path) for name, source in view.sources.items()}
        return sum(len(read_rows(path, view.format, name).rows) for name, path in files.items())
    return sum(open_set(source.path).manifest.totals.samples for source in view.sources.values())


def steps_per_epoch(config: RunConfig) -> int:
    """Return the whole batches of an epoch of the task's view: the first one of annotated rows, else the first. Raise
    ConfigError if a batch is larger than the training data."""
    views = sorted(config.views.items(), key=lambda named: not isinstance(named[1], AnnotatedConfig))
    name, view = views[0]
    if steps := num_samples(view) // view.samples_per_step:
        return steps
    raise ConfigError(
        where=f"views.{name}.batch_size",
        expected=f"at most the {num_samples(view)} samples of its sources",
        got=str(view.batch_size),
        do="Lower it.",
    )


def with_epochs(config: RunConfig) -> RunConfig:
    """Return the configuration with the steps, and the steps of the warm-up, that its epochs say."""
    config = without_training(config)
    finetune, optimizer = config.finetune, config.optimizer
    if not config.steps:
        return config
    if finetune is not None and finetune.epochs is not None:
        optimizer = replace(optimizer, total_steps=finetune.epochs * steps_per_epoch(config))
    if finetune is not None and finetune.warmup_share is not None:
        optimizer = replace(optimizer, warmup_steps=round(finetune.warmup_share * optimizer.total_steps))
    return replace(config, optimizer=optimizer)


def without_training(config: RunConfig) -> RunConfig:
    """Return the configuration of a run of no epochs without what it does not read: training data and dev sets; any
    other as it is. Its protocol is no-fine-tuning, unless it measures what another run has fine-tuned."""
    finetune = config.finetune
    if finetune is None or config.steps:
        return config
    views = {}
    for name, view in config.views.items():
        unread: dict[str, Any] = {"dev": {}} if isinstance(view, AnnotatedConfig) and view.dev else {}
        views[name] = replace(view, sources={}, **unread)
    if not any(_is_fine_tuned(Path(source)) for source in config.start.sources):
        finetune = replace(finetune, protocol="no-fine-tuning")
    return replace(config, views=views, finetune=replace(finetune, dev_sets={}))


def _is_fine_tuned(source: Path) -> bool:
    path = source / "config.yaml"
    if not path.is_file():
        return False
    content = read_yaml(path, expected="the configuration of a run", do="Give the folder of another run.")
    return isinstance(content, dict) and content.get("finetune") is not None
