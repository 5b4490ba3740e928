"""Averages of the weights: the rule, the files, and reading them back on any number of ranks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from cclm.distributed.collectives import SINGLE
from cclm.engine.ema import WeightAverage, start_average, stored_average
from cclm.engine.fragments import Fragment
from cclm.engine.options import OptimizerConfig
from cclm.engine.plain import PlainEngine
from cclm.errors import CheckpointError, ConfigError
from tests.ranks.toy import joint_batch, make_toy

CPU = torch.device("cpu")


def fragments(values: torch.Tensor, world_size: int, rank: int) -> list[Fragment]:
    """This rank's piece of one parameter."""
    size = -(-values.numel() // world_size)
    piece = values.flatten()[rank * size : (rank + 1) * size]
    found = Fragment(name="model.weight", shape=tuple(values.shape), start=rank * size, values=piece)
    return [found] if piece.numel() else []


def save(folder: Path, values: torch.Tensor, world_size: int) -> Path:
    for rank in range(world_size):
        average = WeightAverage(0.9, fragments(values, world_size, rank), CPU)
        average.updates = 7
        average.save(folder, rank)
    return folder


def test_the_average_follows_the_rule() -> None:
    values = torch.tensor([1.0, -2.0])
    average = WeightAverage(0.5, fragments(values, 1, 0), CPU)
    expected = values.clone()
    for number in range(8):
        values += 1.0
        average.update(fragments(values, 1, 0))
        decay = min(0.5, (1 + number) / (10 + number))
        expected = expected + (1 - decay) * (values - expected)
    torch.testing.assert_close(average.averages[0].values, expected)
    assert average.updates == 8


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_shares_of_any_number_of_ranks_are_the_parameter(tmp_path: Path, world_size: int) -> None:
    values = torch.arange(7.0).view(7, 1)
    stored = stored_average(save(tmp_path, values, world_size))
    assert torch.equal(stored["model.weight"].whole(), values)
    for readers in (1, 2, 4):
        for rank in range(readers):
            average = WeightAverage(0.9, fragments(torch.zeros(7, 1), readers, rank), CPU)
            average.load(tmp_path)
            assert average.updates == 7
            own = fragments(values, readers, rank)
            assert all(map(torch.equal, (f.values for f in average.averages), (f.values for f in own)))


def test_what_is_missing_is_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"expected averaged weights \(folder 'ema'\), got none"):
        stored_average(tmp_path)
    save(tmp_path, torch.arange(6.0), 3)
    with pytest.raises(CheckpointError, match=r"averages in .*expected x of shape \(1,\), got no such parameter"):
        WeightAverage(0.9, [Fragment(name="x", shape=(1,), start=0, values=torch.ones(1))], CPU).load(tmp_path)
    (tmp_path / "ema" / "rank_00001.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"all of model\.weight, got nothing from element 2 to 4"):
        stored_average(tmp_path)
    (tmp_path / "ema" / "rank_00000.safetensors").write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match="a readable safetensors file"):
        stored_average(tmp_path)


def test_no_decay_no_average() -> None:
    assert start_average(0.0, lambda: pytest.fail("not asked for"), CPU) is None
    with pytest.raises(ConfigError, match="ema_decay must be a number of at least 0 and below 1"):
        OptimizerConfig(total_steps=1, ema_decay=1.0)


def test_the_plain_engine_averages_its_weights_and_resumes(tmp_path: Path) -> None:
    config = OptimizerConfig(total_steps=9, learning_rate=1e-2, ema_decay=0.7)

    def step(engine: PlainEngine, number: int) -> None:
        engine.backward(engine.forward(joint_batch(number, 0, 1)))
        engine.update(number)

    torch.manual_seed(0)
    engine, expected = PlainEngine(make_toy(SINGLE), config), {}
    expected = engine.full_parameters()
    for number in range(3):
        step(engine, number)
        decay = min(0.7, (1 + number) / (10 + number))
        now = engine.full_parameters()
        expected = {name: value.lerp(now[name], 1 - decay) for name, value in expected.items()}
    engine.save(tmp_path, {})
    stored = stored_average(tmp_path)
    trained = {name for name, value in engine.module.named_parameters() if value.requires_grad}
    assert stored.keys() == trained
    for name, average in stored.items():
        torch.testing.assert_close(average.whole(), expected[name])

    step(engine, 3)
    torch.manual_seed(1)
    again = PlainEngine(make_toy(SINGLE), config)
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
    with pytest.raises(CheckpointError, match=r"Train with optimizer\.ema_decay"):
        PlainEngine(module, OptimizerConfig(total_steps=1, ema_decay=0.5)).load(tmp_path)
