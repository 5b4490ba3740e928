"""A run in deterministic mode: torch is told before the ranks meet, and afterwards all is as before."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cclm.data.batch import Batch
from cclm.engine.plain import PlainEngine
from cclm.engine.protocol import Losses
from cclm.engine.stored_weights import load_full_state
from cclm.run.checkpoints import step_folder
from cclm.train.build import WORKSPACE, deterministic
from tests.tiny_run import recipe, write_corpus
from tests.tiny_training import as_config, run_to_the_end


def test_an_operation_without_a_deterministic_kernel_ends_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WORKSPACE, "")
    monkeypatch.delenv(WORKSPACE)
    with deterministic(True):
        assert os.environ[WORKSPACE] == ":4096:8"
        with pytest.raises(RuntimeError, match=r"put_.*does not have a deterministic implementation"):
            torch.zeros(4).put_(torch.tensor([0, 0]), torch.ones(2))
    torch.zeros(4).put_(torch.tensor([0, 0]), torch.ones(2))
    with deterministic(False):
        assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.slow
def test_a_run_has_the_same_numbers_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WORKSPACE, ":16:8")
    corpus, forward, modes = write_corpus(tmp_path), PlainEngine.forward, set[bool]()
    settings = recipe(corpus, tmp_path / "off", engine="plain", optimizer={"total_steps": 2, "learning_rate": 0.01})
    config = as_config(settings)

    def noted(engine: PlainEngine[Batch], batch: Batch) -> Losses:
        modes.add(torch.are_deterministic_algorithms_enabled())
        return forward(engine, batch)

    monkeypatch.setattr(PlainEngine, "forward", noted)
    for name, mode in (("off", False), ("on", True)):
        modes.clear()
        assert run_to_the_end(replace(config, run_folder=str(tmp_path / name), deterministic=mode))
        assert modes == {mode} and not torch.are_deterministic_algorithms_enabled()
    assert os.environ[WORKSPACE] == ":16:8", "what is set already stays"
    off, on = (load_full_state(step_folder(tmp_path / name, 2)) for name in ("off", "on"))
    assert [name for name in off if not torch.equal(off[name], on[name])] == []
