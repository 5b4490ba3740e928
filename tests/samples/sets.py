"""A folder of real annotation rows: counts.json, and the files that it names, in the layout of their repositories.

Nothing here knows a language or a count: what a file holds, and how many of it is usable, stands in counts.json.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

VARIABLE = "CCLM_SAMPLES"

STATEMENTS = ("XVNLI", "MaRVL", "NLVR2")
QUESTIONS = ("xGQA", "GQA")
ALIGNED = ("Multi30K task 1", "Multi30K task 2", "XTD10")
READ = ("xFlickr&CO", "Flickr30k", "WIT", "MSCOCO-it", "COCO-CN ext", *ALIGNED)
NO_DATA = ("licence",)
"""What is read by the sources of shards is `READ`; the readers of annotations read all sets."""


@dataclass(frozen=True)
class Sample:
    """One file of the folder."""

    path: Path
    entry: dict[str, Any]

    @property
    def set(self) -> str:
        return str(self.entry["set"])

    @property
    def language(self) -> str:
        return str(self.entry["languages"][0])

    @property
    def usable(self) -> dict[str, int]:
        return dict(self.entry["usable"])

    @property
    def counts(self) -> dict[str, Any]:
        return dict(self.entry["counts"])


def folder() -> Path | None:
    """Where the samples are."""
    value = os.environ.get(VARIABLE)
    return Path(value) if value else None


def document() -> dict[str, Any]:
    root = folder()
    if root is None:
        return {}
    found: dict[str, Any] = json.loads((root / "counts.json").read_text(encoding="utf-8"))
    return found


def samples(*sets: str) -> list[Sample]:
    root = folder()
    files = document().get("files", {})
    return [Sample(root / path, entry) for path, entry in files.items() if root and entry["set"] in sets]


def captioned(*sets: str) -> list[Sample]:
    return [sample for sample in samples(*sets) if sample.entry["languages"]]


def splits(*sets: str) -> list[tuple[str, str]]:
    return sorted({(sample.set, str(sample.entry["split"])) for sample in captioned(*sets)})


def parameters(values: list[Any], name: Any) -> list[Any]:
    """One pytest parameter per value, or one that is skipped and says why."""
    missing = pytest.mark.skip(reason="no annotation samples: make test-samples SAMPLES=DIR")
    return [pytest.param(value, id=name(value)) for value in values] or [pytest.param(None, id="none", marks=missing)]
