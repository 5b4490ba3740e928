"""The configuration of a run that nobody starts, for tests of what is said about runs."""

from __future__ import annotations

from typing import Any

from cclm.config import RunConfig
from tests.tiny_training import as_config

VIEWS: dict[str, Any] = {
    "image_text": {"sources": {"train": {"path": "sets/train"}}, "languages": ["en"], "transform": {"size": 32}},
    "text_pair": {"sources": {"pairs": {"path": "sets/pairs"}}},
}


def run_values(*, views: dict[str, Any] | None = None, **blocks: Any) -> dict[str, Any]:
    """What stands in its config.yaml: the required keys, with `views` (None: without it) and other blocks changed."""
    given = {name: view for name, view in (VIEWS | (views or {})).items() if view is not None}
    data, optimizer = {"tokenizer": "sets/tokenizer"}, {"total_steps": 1725}
    return {"run_folder": "runs/run", "seed": 42, "views": given, "data": data, "optimizer": optimizer, **blocks}


def run_config(**blocks: Any) -> RunConfig:
    """The same, typed."""
    return as_config(run_values(**blocks))
