from __future__ import annotations

from pathlib import Path

import pytest

from cclm.errors import CheckpointError
from cclm.run.checkpoints import identify, identify_newest, step_folder
from tests.tiny_checkpoint import write_checkpoint


def test_equal_bytes_are_one_identity_and_others_another(tmp_path: Path) -> None:
    first = identify(write_checkpoint(tmp_path / "a", 5, "x"))
    assert first.step == 5 and len(first.identity) == 64
    assert identify(write_checkpoint(tmp_path / "moved", 5, "x")) == first
    assert identify(write_checkpoint(tmp_path / "b", 5, "y")).identity != first.identity
    assert identify(write_checkpoint(tmp_path / "c", 6, "x")).identity != first.identity


def test_the_newest_complete_one_counts(tmp_path: Path) -> None:
    assert identify_newest(tmp_path) is None
    write_checkpoint(tmp_path, 5, "x")
    newest = write_checkpoint(tmp_path, 9, "x")
    step_folder(tmp_path, 12).mkdir()
    assert identify_newest(tmp_path) == identify(newest)
    with pytest.raises(CheckpointError, match="a readable marker"):
        identify(step_folder(tmp_path, 12))
