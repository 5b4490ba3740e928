from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from cclm.engine.adamw import MOMENTS
from cclm.engine.optimizer import parameter_groups
from cclm.engine.options import OptimizerConfig
from cclm.engine.parts import freeze
from cclm.engine.plain import PlainEngine
from cclm.engine.protocol import Losses
from cclm.errors import ConfigError

CONFIG = OptimizerConfig(total_steps=10, learning_rate=0.1, weight_decay=0.5, ema_decay=0.5)


@dataclass(frozen=True)
class Rows:
    """A batch of ids."""

    ids: torch.Tensor
    step: int = 0
    update: int = 0
    part: int = 0


class Tied(nn.Module):
    """A word table that is also the decoder's matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(5, 4)
        self.layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.decoder = nn.Linear(4, 5)
        self.decoder.weight = self.words.weight

    def forward(self, batch: Rows) -> Losses:
        rows = self.words(batch.ids)
        for layer in self.layers:
            rows = layer(rows).tanh()
        total = nn.functional.cross_entropy(self.decoder(rows), batch.ids)
        return Losses(total=total, metrics={"loss": total.detach()})


def trained(module: nn.Module) -> set[str]:
    return {name for name, parameter in module.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize(
    ("prefixes", "left"),
    [
        (("layers.1",), {"words.weight", "layers.0.weight", "layers.0.bias", "decoder.bias"}),
        (("layers.*.bias", "words"), {"layers.0.weight", "layers.1.weight", "decoder.bias"}),
        (("decoder",), {"layers.0.weight", "layers.0.bias", "layers.1.weight", "layers.1.bias"}),
        ((), {"words.weight", "layers.0.weight", "layers.0.bias", "layers.1.weight", "layers.1.bias", "decoder.bias"}),
    ],
)
def test_parts_are_frozen_by_any_of_their_names(prefixes: tuple[str, ...], left: set[str]) -> None:
    module = Tied()
    freeze(module, prefixes)
    assert trained(module) == left


def test_an_unknown_prefix_is_one_error_that_names_the_nearest() -> None:
    with pytest.raises(ConfigError) as caught:
        freeze(Tied(), ("layers", "word", "layers.2"))
    assert caught.value.where == "start.freeze"
    assert "'word' (nearest: 'words')" in caught.value.got and "'layers.2' (nearest: 'layers." in caught.value.got


def test_something_must_be_left_to_train() -> None:
    with pytest.raises(ConfigError) as caught:
        freeze(Tied(), ("words", "layers", "decoder"))
    assert caught.value.expected == "something that is left to train"


def test_a_multiplier_may_name_what_is_frozen() -> None:
    module = Tied()
    freeze(module, ("layers.0",))
    config = OptimizerConfig(total_steps=10, module_multipliers={"layers.0": 0.5, "layers.1": 2.0})
    assert {group["multiplier"] for group in parameter_groups(module, config)} == {1.0, 2.0}


def test_the_plain_engine_leaves_frozen_parameters_alone() -> None:
    torch.manual_seed(0)
    module = Tied()
    freeze(module, ("words",))
    before = {name: value.detach().clone() for name, value in module.named_parameters()}
    engine: PlainEngine[Rows] = PlainEngine(module, CONFIG)
    for step in range(4):
        engine.backward(engine.forward(Rows(torch.arange(5), step)))
        assert module.words.weight.grad is None
        engine.update(step)
    moved = {name for name, value in module.named_parameters() if not torch.equal(value, before[name])}
    assert moved == trained(module)
    for kind in MOMENTS:
        assert {one.name for one in engine.state.fragments(kind)} == moved
    assert engine.state.average is not None and {one.name for one in engine.state.average.averages} == moved


def test_an_update_that_reaches_nothing_that_is_trained_is_refused() -> None:
    module = Tied()
    module.unused = nn.Linear(2, 2)
    freeze(module, ("words", "layers", "decoder"))
    engine: PlainEngine[Rows] = PlainEngine(module, CONFIG)
    with pytest.raises(ConfigError) as caught:
        engine.backward(engine.forward(Rows(torch.arange(5))))
    assert caught.value.where == "start.freeze"
