from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from cclm.engine.adamw import PublishedAdamW, fused_update
from cclm.engine.optimizer import build_adamw, parameter_groups
from cclm.engine.options import OptimizerConfig
from cclm.model.modeling_cclm import CCLMModel
from tests.unit.model.tiny import tiny_config

RATE, BETAS, EPS, DECAY = 0.05, (0.9, 0.98), 1e-3, 0.1


def by_hand(value: float, gradients: list[float], decay: float) -> float:
    """One number through the published update."""
    mean = square = 0.0
    for count, gradient in enumerate(gradients, start=1):
        mean = BETAS[0] * mean + (1 - BETAS[0]) * gradient
        square = BETAS[1] * square + (1 - BETAS[1]) * gradient**2
        size = RATE * math.sqrt(1 - BETAS[1] ** count) / (1 - BETAS[0] ** count)
        value -= size * mean / (math.sqrt(square) + EPS)
        value -= RATE * decay * value
    return value


def published(parameters: list[nn.Parameter], decay: float = DECAY, *, is_fused: bool = True) -> PublishedAdamW:
    groups = [{"params": parameters, "weight_decay": decay}]
    return PublishedAdamW(groups, lr=RATE, betas=BETAS, eps=EPS, is_fused=is_fused)


@pytest.mark.parametrize("is_fused", [True, False])
@pytest.mark.parametrize("decay", [0.0, DECAY])
def test_three_updates_number_by_number(decay: float, is_fused: bool) -> None:
    starts, gradients = [1.0, -0.5, 2.0], [[0.3, -0.1, 0.0], [1e-4, 0.2, 0.0], [-0.3, 0.5, 0.0]]
    parameter = nn.Parameter(torch.tensor(starts))
    optimizer = published([parameter], decay, is_fused=is_fused)
    for row in gradients:
        parameter.grad = torch.tensor(row)
        optimizer.step()
    expected = [by_hand(start, [row[k] for row in gradients], decay) for k, start in enumerate(starts)]
    assert parameter.tolist() == pytest.approx(expected, rel=1e-6)


def after_200_updates(dtype: torch.dtype, *, is_fused: bool) -> Tensor:
    """Gradients of many sizes, a warm-up from 0, one group that is decayed and one that is not."""
    noise = torch.Generator().manual_seed(0)
    starts = [torch.randn(size, generator=noise, dtype=torch.double) for size in (35, 33, 256)]
    parameters = [nn.Parameter(start.to(dtype)) for start in starts]
    groups = [{"params": parameters[:2], "weight_decay": DECAY}, {"params": parameters[2:]}]
    optimizer = PublishedAdamW(groups, lr=RATE, betas=BETAS, eps=1e-6, is_fused=is_fused)
    for step in range(200):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, step / 20)
        for parameter in parameters:
            scale = 10.0 ** torch.randint(-6, 1, (1,), generator=noise)
            gradient = scale * torch.randn(parameter.shape, generator=noise, dtype=torch.double)
            parameter.grad = gradient.to(dtype)
        optimizer.step()
    return torch.cat([parameter.detach().double() for parameter in parameters])


def test_the_fused_update_is_the_slow_one_but_for_rounding() -> None:
    exact = after_200_updates(torch.double, is_fused=False)
    assert (after_200_updates(torch.double, is_fused=True) - exact).abs().max() < 1e-12
    fused, slow = ((after_200_updates(torch.float, is_fused=one) - exact).abs().max() for one in (True, False))
    assert fused < 1.5 * slow < 3e-5, "in float32 as near to the exact one as the slow one"


def test_parameters_that_come_later_are_counted_by_themselves() -> None:
    late, alone = (nn.Parameter(torch.ones(2)) for _ in range(2))
    optimizer, twin = published([nn.Parameter(torch.ones(2)), late]), published([alone])
    for step in range(3):
        for parameter in (optimizer.param_groups[0]["params"][0], *([late, alone] if step else [])):
            parameter.grad = torch.full((2,), 0.1 * (step + 1))
        optimizer.step()
        twin.step()
    assert torch.equal(late.detach(), alone.detach()) and int(optimizer.state[late]["step"]) == 2


def test_it_is_not_torchs() -> None:
    ours, theirs = (nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizers = (published([ours]), torch.optim.AdamW([theirs], lr=RATE, betas=BETAS, eps=EPS, weight_decay=DECAY))
    for parameter in (ours, theirs):
        parameter.grad = torch.full((3,), 1e-3)
    for optimizer in optimizers:
        optimizer.step()
    assert (ours - theirs).abs().max() > 1e-3


def test_no_gradient_is_left_alone_and_a_zero_gradient_moves_on() -> None:
    used, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = published([used, unused])
    used.grad = torch.ones(2)
    optimizer.step()
    assert torch.equal(unused.detach(), torch.ones(2))
    assert not optimizer.state.get(unused)
    before = used.detach().clone()
    used.grad = torch.zeros(2)
    optimizer.step()
    assert (before - used).min() > 0.01, "momentum"


def test_its_state_survives() -> None:
    parameter = nn.Parameter(torch.ones(4))
    optimizer = published([parameter])
    parameter.grad = torch.randn(4)
    optimizer.step()
    twin = nn.Parameter(parameter.detach().clone())
    restored = published([twin])
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for one, other in ((parameter, optimizer), (twin, restored)):
        one.grad = torch.full((4,), 0.2)
        other.step(lambda: 1.0)
    assert torch.equal(parameter.detach(), twin.detach())


CONFIG = OptimizerConfig(total_steps=10, decay_rule="published", update_rule="published")


def test_the_config_chooses_it() -> None:
    module = nn.Linear(2, 2)
    optimizer = build_adamw(parameter_groups(module, CONFIG), CONFIG)
    assert isinstance(optimizer, PublishedAdamW) and optimizer._update is fused_update
    plain = replace(CONFIG, update_rule="torch")
    assert isinstance(build_adamw(parameter_groups(module, plain), plain), torch.optim.AdamW)


def test_the_published_rule_goes_by_names() -> None:
    vision = {"architecture": "beit", "patch_size": 4, "num_heads": 2, "feedforward_width": 24}
    model = CCLMModel(tiny_config(box_head=True, vision=vision, text={"token_type": True}))
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed: dict[str, Tensor] = {
        name_of[id(parameter)]: parameter
        for group in parameter_groups(model, CONFIG)
        if group["weight_decay"] > 0
        for parameter in group["params"]
    }
    assert {
        "temperature.value",
        "matching_head.norm.weight",
        "box_head.norm.weight",
        "vision_encoder.class_token",
        "vision_encoder.blocks.0.attention_scale",
        "text_encoder.embeddings.token_type",
    } <= decayed.keys()
    assert not any("bias" in name for name in decayed)
    gains = {name for name in decayed if name.endswith("norm.weight")}
    assert gains == {"matching_head.norm.weight", "box_head.norm.weight"}
