"""What a fresh run starts from: the weights of other models, and a note of what they filled."""

from __future__ import annotations

import json
from pathlib import Path

from cclm.config import RunConfig
from cclm.files.atomic import replace_text
from cclm.model.modeling_cclm import CCLMModel
from cclm.pretrained.initialise import source_weights, start_model

START_FILE = "start.json"
"""In the run folder: the fate of every key of every source, and the parameters that no source gave."""


def start_from_sources(config: RunConfig, model: CCLMModel, *, is_first: bool) -> None:
    """Fill `model` from `start.sources`; rank 0 (`is_first`) writes down what came from where.

    Raises:
        CheckpointError: a source that cannot be read or does not fit.
    """
    state, report = source_weights(config.start.sources, model.config.options(), config.start.text_fills)
    fresh = start_model(model, state)
    if is_first:
        note = {"sources": list(config.start.sources), "fresh": fresh, "keys": json.loads(report.as_json())}
        Path(config.run_folder).mkdir(parents=True, exist_ok=True)
        replace_text(Path(config.run_folder) / START_FILE, json.dumps(note, indent=1) + "\n")
