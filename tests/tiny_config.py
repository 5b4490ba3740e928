"""The configuration of a run that nobody starts, for tests of what is said about runs."""

from __future__ import annotations

from typing import Any

from cclm.config import RunConfig
from cclm.files.reading import typed_values

IMAGES: dict[str, Any] = {"shards": ["sets/train"], "languages": ["en"], "transform": {"size": 32}}
PAIRS: dict[str, Any] = {"shards": ["sets/pairs"]}


def run_values(*, data: dict[str, Any] | None = None, **blocks: Any) -> dict[str, Any]:
    """What stands in its config.yaml: the required keys, with `data` and other blocks changed."""
    views = {"tokenizer": "sets/tokenizer", "image_text": IMAGES, "text_pair": PAIRS, **(data or {})}
    return {"run_folder": "runs/run", "seed": 42, "data": views, "optimizer": {"total_steps": 1725}, **blocks}


def run_config(*, data: dict[str, Any] | None = None, **blocks: Any) -> RunConfig:
    """The same, typed."""
    return typed_values(RunConfig, run_values(data=data, **blocks), where="test", expected="a configuration", do="")
