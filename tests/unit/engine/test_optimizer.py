from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from cclm.engine.optimizer import build_adamw, parameter_groups, set_learning_rates, total_norm
from cclm.engine.options import OptimizerConfig
from cclm.errors import ConfigError, Problem
from cclm.files.reading import typed_values

CONFIG = OptimizerConfig(total_steps=100, learning_rate=1e-3, warmup_steps=10, weight_decay=0.1)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(5, 4)
        self.layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.norm = nn.LayerNorm(4)
        self.temperature = nn.Parameter(torch.ones(1))
        self.relative_position_bias_table = nn.Parameter(torch.ones(3, 2))
        self.frozen = nn.Parameter(torch.ones(2, 2), requires_grad=False)


def _names(module: nn.Module, config: OptimizerConfig) -> dict[str, set[str]]:
    by_id = {id(parameter): name for name, parameter in module.named_parameters()}
    return {group["name"]: {by_id[id(item)] for item in group["params"]} for group in parameter_groups(module, config)}


def test_a_norm_is_exact_whatever_the_size() -> None:
    """Torch's own of so many values in a row is a hundredth too small."""
    whole = torch.full((1 << 24,), 1e-3)
    found = total_norm([whole.view(4096, 4096), torch.zeros(3), torch.full((2, 1), 2.0)])
    assert found.dtype == torch.float64
    assert float(found) == pytest.approx((2.0**24 * 1e-6 + 8) ** 0.5, rel=1e-5)


def test_decay_is_for_matrices_and_embeddings() -> None:
    groups = _names(Small(), CONFIG)
    assert groups["decay"] == {"words.weight", "layers.0.weight", "layers.1.weight"}
    assert groups["no_decay"] == {
        "layers.0.bias",
        "layers.1.bias",
        "norm.weight",
        "norm.bias",
        "temperature",
        "relative_position_bias_table",
    }
    assert "words.weight" in _names(Small(), replace(CONFIG, decay_embeddings=False))["no_decay"]
    assert [group["weight_decay"] for group in parameter_groups(Small(), CONFIG)] == [0.1, 0.0]


def test_longest_prefix_wins_and_whole_components_only() -> None:
    config = replace(
        CONFIG,
        module_multipliers={"layers": 0.5, "layers.1": 0.1},
        weight_decay_multipliers={"layers": 3.0},
    )
    module = Small()
    module.layers_extra = nn.Linear(4, 4)
    groups = {group["name"]: group for group in parameter_groups(module, config)}
    assert {name: group["multiplier"] for name, group in groups.items()} == {
        "decay": 1.0,
        "no_decay": 1.0,
        "layers/decay": 0.5,
        "layers/no_decay": 0.5,
        "layers.1/decay": 0.1,
        "layers.1/no_decay": 0.1,
    }
    assert groups["layers.1/decay"]["weight_decay"] == pytest.approx(0.3)
    assert groups["layers.1/no_decay"]["weight_decay"] == 0.0
    assert "layers_extra.weight" in _names(module, config)["decay"]


def test_a_star_is_any_one_component() -> None:
    config = replace(CONFIG, module_multipliers={"layers.*.weight": 2.0, "layers": 0.5})
    groups = {group["name"]: group["multiplier"] for group in parameter_groups(Small(), config)}
    assert groups == {"decay": 1.0, "no_decay": 1.0, "layers.*.weight/decay": 2.0, "layers/no_decay": 0.5}
    assert _names(Small(), config)["layers.*.weight/decay"] == {"layers.0.weight", "layers.1.weight"}
    overlapping = replace(config, weight_decay_multipliers={"layers.0": 3.0})
    with pytest.raises(ConfigError, match=r"one multiplier for everything under 'layers\.\*\.weight'"):
        parameter_groups(Small(), overlapping)
    with pytest.raises(ConfigError, match=r"'layers\.\*\.gain'"):
        parameter_groups(Small(), replace(CONFIG, module_multipliers={"layers.*.gain": 2.0}))


def test_unknown_prefixes_are_named_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="'layer' \\(nearest: 'layers'\\)"):
        parameter_groups(Small(), replace(CONFIG, module_multipliers={"layer": 2.0}))


@pytest.mark.parametrize(
    ("schedule", "middle", "last"), [("cosine", 0.55, 0.1), ("linear", 0.55, 0.1), ("constant", 1.0, 1.0)]
)
def test_schedule(schedule: Any, middle: float, last: float) -> None:
    config = replace(CONFIG, schedule=schedule, final_fraction=0.1)
    factors = [config.learning_rate_factor(step) for step in range(120)]
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert factors[10] == 1.0
    assert factors[55] == pytest.approx(middle)
    assert factors[100] == factors[119] == pytest.approx(last)
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(factors[10:]))


def test_without_warmup_the_first_step_is_at_the_peak() -> None:
    assert replace(CONFIG, warmup_steps=0).learning_rate_factor(0) == 1.0
    assert replace(CONFIG, warmup_steps=100).learning_rate_factor(99) == 1.0


def test_the_published_warm_up_starts_at_zero() -> None:
    """Linear up from 0, then (T - t) / (T - warm-up), as transformers' linear schedule of 2021 does."""
    config = replace(CONFIG, schedule="linear", warmup_from_zero=True)
    for step in range(101):
        expected = step / 10 if step < 10 else (100 - step) / 90
        assert config.learning_rate_factor(step) == pytest.approx(expected)


def test_wsd_stays_at_the_peak_and_falls_as_one_minus_the_root() -> None:
    config = replace(CONFIG, schedule="wsd", decay_steps=16, final_fraction=0.2)
    factors = [config.learning_rate_factor(step) for step in range(120)]
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert set(factors[10:85]) == {1.0}
    assert factors[88] == pytest.approx(0.2 + 0.8 * 0.5)  # a quarter of the decay
    assert factors[100] == factors[119] == 0.2
    assert all(later <= earlier for earlier, later in pairwise(factors[10:]))


def test_a_longer_wsd_run_has_the_same_stable_part() -> None:
    short = replace(CONFIG, schedule="wsd", decay_steps=20)
    longer = replace(short, total_steps=300)
    assert all(short.learning_rate_factor(step) == longer.learning_rate_factor(step) for step in range(81))
    assert longer.learning_rate_factor(280) == 1.0 > longer.learning_rate_factor(281)


def test_learning_rates_are_set_and_returned_by_name() -> None:
    config = replace(CONFIG, module_multipliers={"layers": 0.5})
    optimizer = build_adamw(parameter_groups(Small(), config), config)
    rates = set_learning_rates(optimizer, config, 4)
    assert rates == pytest.approx({"decay": 5e-4, "no_decay": 5e-4, "layers/decay": 2.5e-4, "layers/no_decay": 2.5e-4})
    assert [group["lr"] for group in optimizer.param_groups] == list(rates.values())


def test_fused_adamw_equals_the_textbook() -> None:
    torch.manual_seed(0)
    module = nn.Linear(3, 3, bias=False)
    config = OptimizerConfig(total_steps=10, learning_rate=0.1, betas=(0.9, 0.99), eps=1e-6, weight_decay=0.5)
    weight, gradient = module.weight.detach().clone().double(), torch.randn(3, 3)
    optimizer = build_adamw(parameter_groups(module, config), config)
    mean = square = torch.zeros(3, 3, dtype=torch.double)
    for step in range(3):
        rate = set_learning_rates(optimizer, config, step)["decay"]
        module.weight.grad = gradient * (step + 1)
        optimizer.step()
        mean = 0.9 * mean + 0.1 * gradient.double() * (step + 1)
        square = 0.99 * square + 0.01 * (gradient.double() * (step + 1)) ** 2
        weight = weight * (1 - rate * 0.5)
        weight -= rate * (mean / (1 - 0.9 ** (step + 1))) / ((square / (1 - 0.99 ** (step + 1))).sqrt() + 1e-6)
    torch.testing.assert_close(module.weight.detach().double(), weight, rtol=1e-5, atol=1e-6)


def refused(**values: object) -> set[str]:
    with pytest.raises(ConfigError) as caught:
        typed_values(
            OptimizerConfig, {"total_steps": 5, **values}, where="optimizer", expected="options", do="Correct."
        )
    return {problem.key for problem in caught.value.problems if isinstance(problem, Problem)}


def test_all_complaints_about_the_config_come_at_once() -> None:
    wrong = {"learning_rate": 0.0, "schedule": "step", "final_fraction": 2.0, "module_multipliers": {"x": -1.0}}
    wrong |= {"ema_decay": 1.0, "update_rule": "adam", "decay_rule": "none"}
    assert refused(**wrong) == {*wrong, "module_multipliers.x"} - {"module_multipliers"}
    assert refused(warmup_steps=6) == {"warmup_steps"}
    assert refused(schedule="wsd") == refused(decay_steps=2) == {"decay_steps"}
    assert refused(schedule="wsd", decay_steps=4, warmup_steps=2) == {"decay_steps"}
    assert refused(weight_decay=20.0, learning_rate=0.01, module_multipliers={"x": 5.0}) == {"weight_decay"}
    assert refused(layer_decay={"model.text_encoder": 0.0}) == {"layer_decay.model.text_encoder"}
