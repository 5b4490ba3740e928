"""Two updates as the published code makes them: groups, clipping, AdamW, and what comes out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cclm.engine.optimizer import build_adamw, parameter_groups
from cclm.engine.options import OptimizerConfig
from cclm.pretrained.published_names import to_published
from tests.golden.cases import Draws, Runner
from tests.golden.sets import GoldenSet

MEAN, WORST = 1e-7, 5e-5
"""Absolute, of a parameter after a step: the mean of its elements and the worst of them.

AdamW's first step is `rate · g / (|g| + eps)`: an element whose gradient is within some hundred `eps` of zero turns the
rounding of its gradient into a part of the rate (1e-3 here), and which elements these are depends on the instructions
that the processor has (measured: 1e-8 on average, 1.2e-5 at worst). A decay left out moves the mean by 2e-7.
"""


def optimizer_config(golden: GoldenSet) -> OptimizerConfig:
    """The published options, its learning rates as multipliers of ours."""
    given = golden.meta["optimizer"]
    return OptimizerConfig(
        total_steps=2,
        learning_rate=given["lr"],
        betas=tuple(given["betas"]),
        eps=given["eps"],
        weight_decay=given["weight_decay"],
        schedule="constant",
        max_grad_norm=given["clip_grad_norm"],
        module_multipliers=module_multipliers(golden, given),
        decay_rule="published",
        update_rule="published",
    )


def module_multipliers(golden: GoldenSet, given: dict[str, Any]) -> dict[str, float]:
    """New parameters learn faster; in X2VLM only those outside the towers, which have their own rates."""
    if golden.is_x2vlm:
        rates = {"vision_encoder": "vision_lr", "text_encoder": "text_lr", "fusion_encoder": "cross_lr"}
        return {
            **{name: given[rate] / given["lr"] for name, rate in rates.items()},
            "masked_lm_decoder": given["lr_mult"],
        }
    layers = range(golden.options.fusion.num_layers)
    fresh = [
        f"fusion_encoder.stack.layers.{number}.cross_{part}" for number in layers for part in ("attention", "norm")
    ]
    heads = ["temperature", "image_projection", "text_projection", "matching_head", "box_head"]
    return dict.fromkeys([*fresh, *heads], float(given["lr_mult"]))


def test_groups_hold_the_same_parameters(golden: GoldenSet) -> None:
    model, config = golden.model(), optimizer_config(golden)
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    theirs_of = {weight.ours: weight.theirs for weight in golden.weights}
    ours: dict[str, tuple[float, float]] = {}
    for group in parameter_groups(model, config):
        for parameter in group["params"]:
            for name in theirs_of[name_of[id(parameter)]]:
                ours[name] = (group["weight_decay"], round(group["multiplier"] * config.learning_rate, 9))
    expected = {
        name: (group["weight_decay"], round(group["lr"], 9))
        for group in golden.meta["optimizer"]["groups"]
        for name in group["params"]
    }
    assert ours == expected


def draws_of(golden: GoldenSet, record: dict[str, Tensor], step: int, case: str) -> Draws:
    """The recorded negatives of a case in a step."""
    if f"step{step}.neg_idx" in record:
        first, second = record[f"step{step}.neg_idx"].chunk(2)
        return first, second
    names = ("idx_first_for_second", "idx_second_for_first")
    first, second = (record[f"step{step}.{case}.neg.{name}"] for name in names)
    return first, second


def test_two_updates(golden: GoldenSet) -> None:
    record = golden.tensors("optim_steps")
    model, config = golden.model(), optimizer_config(golden)
    optimizer = build_adamw(parameter_groups(model, config), config)
    cases = ("img1", "region", "para") if golden.is_x2vlm else ("itc2",)
    for step in (0, 1):
        total = torch.zeros(())
        for case in cases:
            draws = draws_of(golden, record, step, case)
            loss = Runner(model).run(case, golden.inputs(case), draws).total()
            if f"step{step}.{case}.loss" in record:
                assert loss.item() == pytest.approx(record[f"step{step}.{case}.loss"].item(), abs=1e-5, rel=1e-4)
            total = total + loss
        assert total.item() == pytest.approx(record[f"step{step}.loss"].item(), abs=1e-5, rel=1e-4)
        total.backward()
        norm = nn.utils.clip_grad_norm_(list(model.parameters()), config.max_grad_norm).item()
        assert norm == pytest.approx(record[f"step{step}.grad_norm_before_clip"].item(), rel=1e-4)
        optimizer.step()
        optimizer.zero_grad()
        compare(golden, model, record, step)


def compare(golden: GoldenSet, model: nn.Module, record: dict[str, Tensor], step: int, unused: str = "-") -> None:
    """Every recorded parameter after the step; without those whose names begin with `unused`."""
    published = to_published({name: value.detach() for name, value in model.named_parameters()}, golden.weights)
    names = [name for name in published if f"step{step}.{name}" in record and not name.startswith(unused)]
    assert len(names) >= 10
    for name in names:
        off = (published[name] - record[f"step{step}.{name}"]).abs()
        assert off.mean().item() <= MEAN, f"step {step} {name}: off by {off.mean():.1e} on average"
        assert off.max().item() <= WORST, f"step {step} {name}: off by {off.max():.1e}"
