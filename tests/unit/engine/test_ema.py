"""Averages of the weights: the rule, and a resumed engine."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from cclm.data.batch import Batch
from cclm.distributed.collectives import SINGLE
from cclm.engine.fragments import Fragment
from cclm.engine.options import OptimizerConfig
from cclm.engine.plain import PlainEngine
from cclm.engine.rank_state import WeightAverage
from cclm.engine.stored_weights import stored_average
from cclm.errors import CheckpointError, ConfigError
from cclm.files.reading import typed_values
from tests.engine_values import full_parameters
from tests.ranks.toy import joint_batch, make_toy

CPU = torch.device("cpu")


def fragments(values: torch.Tensor) -> list[Fragment]:
    return [Fragment(name="model.weight", shape=tuple(values.shape), start=0, values=values.flatten())]


def test_the_average_follows_the_rule() -> None:
    values = torch.tensor([1.0, -2.0])
    average = WeightAverage(0.5, fragments(values), CPU)
    expected = values.clone()
    for number in range(8):
        values += 1.0
        average.update(fragments(values))
        decay = min(0.5, (1 + number) / (10 + number))
        expected = expected + (1 - decay) * (values - expected)
    torch.testing.assert_close(average.averages[0].values, expected)
    assert average.updates == 8


def test_no_decay_no_average() -> None:
    engine: PlainEngine[Batch] = PlainEngine(make_toy(SINGLE), OptimizerConfig(total_steps=1))
    assert engine.state.average is None
    with pytest.raises(ConfigError) as caught:
        typed_values(OptimizerConfig, {"total_steps": 1, "ema_decay": 1.0}, where="x", expected="y", do="z")
    assert [problem.key for problem in caught.value.problems] == ["ema_decay"]


def test_the_plain_engine_averages_its_weights_and_resumes(tmp_path: Path) -> None:
    config = OptimizerConfig(total_steps=9, learning_rate=1e-2, ema_decay=0.7)

    def step(engine: PlainEngine[Batch], number: int) -> None:
        engine.backward(engine.forward(joint_batch(number, 0, 1)))
        engine.update(number)

    torch.manual_seed(0)
    engine: PlainEngine[Batch] = PlainEngine(make_toy(SINGLE), config)
    expected = full_parameters(engine)
    for number in range(3):
        step(engine, number)
        decay = min(0.7, (1 + number) / (10 + number))
        now = full_parameters(engine)
        expected = {name: value.lerp(now[name], 1 - decay) for name, value in expected.items()}
    engine.save(tmp_path, {})
    stored = stored_average(tmp_path)
    trained = {name for name, value in engine.module.named_parameters() if value.requires_grad}
    assert stored.keys() == trained
    for name, average in stored.items():
        torch.testing.assert_close(average.whole(), expected[name])

    step(engine, 3)
    torch.manual_seed(1)
    again: PlainEngine[Batch] = PlainEngine(make_toy(SINGLE), config)
    again.load(tmp_path)
    step(again, 3)
    for folder, which in ((tmp_path / "a", engine), (tmp_path / "b", again)):
        folder.mkdir()
        which.save(folder, {})
    first, second = stored_average(tmp_path / "a"), stored_average(tmp_path / "b")
    assert all(torch.equal(first[name].whole(), second[name].whole()) for name in trained)


def test_a_checkpoint_without_averages_is_refused(tmp_path: Path) -> None:
    module: nn.Module = make_toy(SINGLE)
    PlainEngine(module, OptimizerConfig(total_steps=1)).save(tmp_path, {})
    with pytest.raises(CheckpointError, match="average of"):
        PlainEngine(module, OptimizerConfig(total_steps=1, ema_decay=0.5)).load(tmp_path)
