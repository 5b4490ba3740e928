"""What a run takes from other models: the sizes of named towers, and the weights that a fresh run starts from."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from cclm.config import RunConfig
from cclm.errors import ConfigError
from cclm.files.atomic import replace_text
from cclm.model.modeling_cclm import CCLMModel
from cclm.pretrained.initialise import source_weights, start_model
from cclm.pretrained.towers import with_pixel_values, with_towers
from cclm.views.image_text.options import ImageViewConfig

START_FILE = "start.json"
"""In the run folder: the fate of every key of every source, and the parameters that no source gave."""


def names_towers(config: RunConfig) -> bool:
    """Whether sizes are still to be read from a Hugging Face model, which may ask the network."""
    return config.model.vision.source is not None or config.model.text.source is not None


def with_named_towers(config: RunConfig) -> RunConfig:
    """Put in the sizes of the towers that are named by a model, and how its images were normalised.

    Raises:
        ConfigError: a source that cannot be read or does not fit, or sizes that contradict the data.
    """
    views, source = dict(config.views), config.model.vision.source
    for name, view in config.views.items():
        if source is not None and isinstance(view, ImageViewConfig):
            views[name] = replace(view, transform=with_pixel_values(view.transform, source))
    config = replace(config, views=views, model=with_towers(config.model, config.start.text_fills))
    if problems := list(config.validation_errors()):
        raise ConfigError(
            where="configuration",
            expected="sizes of data and network that agree",
            problems=problems,
            do="Change one side of each; nothing was started.",
        )
    return config


def start_from_sources(config: RunConfig, model: CCLMModel, *, is_first: bool) -> None:
    """Fill `model` from `start.sources`; rank 0 (`is_first`) writes down what came from where.

    Raises:
        CheckpointError: a source that cannot be read or does not fit.
    """
    start = config.start
    state, report = source_weights(start.sources, model.config.options(), start.text_fills, start.text_layers)
    fresh = start_model(model, state)
    if is_first:
        note = {"sources": list(config.start.sources), "fresh": fresh, "keys": json.loads(report.as_json())}
        replace_text(Path(config.run_folder) / START_FILE, json.dumps(note, indent=1) + "\n")
