"""Tiny shard sets to read and to break."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.shardfile.tiny_sets import write_image_set, write_text_set


@pytest.fixture
def image_set(tmp_path: Path) -> Path:
    return write_image_set(tmp_path / "images")


@pytest.fixture
def text_set(tmp_path: Path) -> Path:
    return write_text_set(tmp_path / "texts")
