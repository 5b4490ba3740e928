"""Averages of the weights on DeepSpeed ranks, at ZeRO stages: as the plain engine's, and resumed bit by bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cclm.distributed.collectives import collectives
from cclm.engine.stored_weights import stored_average
from tests.engine_values import full_parameters
from tests.ranks.harness import OPTIMIZER, Case, drive, make_deepspeed, make_plain, on_ranks
from tests.ranks.toy import make_toy, mixed_batch

pytestmark = pytest.mark.slow
CASE = Case(make_module=make_toy, make_batch=mixed_batch, num_steps=3, optimizer=replace(OPTIMIZER, ema_decay=0.6))
STAGES = (0, 2, 3)
"""Stage 1 holds what stage 2 holds."""


def _train(case: Case, folder: Path) -> None:
    """Three steps at each stage; saved after two and three, and after three again by an engine that resumed."""
    for stage in STAGES:
        own = replace(case, stage=stage)
        home = folder / str(stage)
        if collectives().rank == 0:
            for name in ("two", "three", "resumed"):
                (home / name).mkdir(parents=True)
        collectives().barrier()
        engine = make_deepspeed(own)
        drive(engine, own, range(2))
        engine.save(home / "two", {})
        drive(engine, own, range(2, 3))
        engine.save(home / "three", {})
        again = make_deepspeed(replace(own, seed=5))
        again.load(home / "two")
        drive(again, replace(own, seed=0), range(2, 3))
        again.save(home / "resumed", {})


def values_of(folder: Path) -> dict[str, Tensor]:
    return {name: average.whole() for name, average in stored_average(folder).items()}


def test_every_stage_averages_like_the_plain_engine(tmp_path: Path) -> None:
    on_ranks(_train, 2, CASE, tmp_path)
    plain = make_plain(CASE)
    drive(plain, CASE, range(3))
    (tmp_path / "plain").mkdir()
    plain.save(tmp_path / "plain", {})
    expected, weights = values_of(tmp_path / "plain"), full_parameters(plain)
    assert max(float((expected[name] - weights[name]).abs().max()) for name in expected) > 1e-4, "averages lag behind"
    for stage in STAGES:
        found = values_of(tmp_path / str(stage) / "three")
        assert found.keys() == expected.keys()
        compared = [name for name in found if not name.endswith("key.bias")]  # gradient 0 but for rounding
        for name, value in ((name, found[name]) for name in compared):
            torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6, msg=f"stage {stage}, {name}")
        resumed = values_of(tmp_path / str(stage) / "resumed")
        assert all(torch.equal(resumed[name], found[name]) for name in found), f"stage {stage}"
