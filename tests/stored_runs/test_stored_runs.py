"""A run of each format version of checkpoints that is still read goes on, with the losses that it had."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from cclm.run.checkpoints import FORMAT_VERSION, READABLE_VERSIONS, complete_checkpoints, read_marker
from tests.stored_runs.make import END, KEPT, STOP, config_of, losses_of, train_on_rank

HERE = Path(__file__).parent


@pytest.mark.parametrize("version", READABLE_VERSIONS)
def test_it_is_stored_as_it_was_written(version: int) -> None:
    (checkpoint,) = complete_checkpoints(HERE / f"format_{version}")
    assert (read_marker(checkpoint).format_version, read_marker(checkpoint).step) == (version, STOP)
    assert READABLE_VERSIONS[-1] == FORMAT_VERSION


@pytest.mark.slow
@pytest.mark.parametrize("version", READABLE_VERSIONS)
def test_it_goes_on(version: int, tmp_path: Path, one_thread: None) -> None:
    run, stored = tmp_path / "run", HERE / f"format_{version}"
    run.mkdir()
    for name in KEPT:
        (shutil.copytree if (stored / name).is_dir() else shutil.copy)(stored / name, run / name)
    config = config_of(tmp_path / "corpus", run, engine="plain")
    train_on_rank(replace(config, optimizer=replace(config.optimizer, total_steps=END)))
    expected = {int(step): loss for step, loss in json.loads((stored / "expected.json").read_text()).items()}
    assert losses_of(run) == pytest.approx(expected, rel=1e-5) and len(expected) == END - STOP
