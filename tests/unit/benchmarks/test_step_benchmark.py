"""Both sides of the benchmark of a step train on the same losses, so that their ratio means something."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch

from benchmarks import step as benchmark
from benchmarks.published_step import LoopAdamW, PublishedStep
from benchmarks.step_case import MASKS, MEDIUM, OPTIMIZER, StepCase
from cclm.distributed.collectives import SINGLE
from cclm.engine.adamw import PublishedAdamW
from cclm.engine.protocol import seed_initialisation

TINY = StepCase(
    rows=3,
    longest=12,
    model=replace(
        MEDIUM,
        width=32,
        projection_width=8,
        matching_width=8,
        vision=replace(
            MEDIUM.vision, image_size=64, stage_layers=(2, 1), stage_heads=(1, 2), num_heads=2, window=4,
            feedforward_width=32, drop_path=0.0,
        ),
        text=replace(
            MEDIUM.text, num_layers=1, num_heads=2, feedforward_width=32, vocab_size=50, dropout=0.0,
            attention_dropout=0.0,
        ),
        fusion=replace(
            MEDIUM.fusion, num_layers=1, num_heads=2, feedforward_width=32, dropout=0.0, attention_dropout=0.0,
        ),
    ),
)  # fmt: skip


@pytest.mark.parametrize("full", [False, True])
def test_the_published_step_has_our_losses_and_gradients(full: bool) -> None:
    case = replace(TINY, full=full)
    seed_initialisation(0)
    ours = benchmark.joint_module(case, SINGLE)
    published = PublishedStep(case.build_model("padded"), OPTIMIZER, MASKS)
    published.model.load_state_dict(ours.model.state_dict())
    losses = ours(case.batch(0))
    losses.total.backward()
    total = torch.zeros(())
    for name, view in case.batch(0, case.longest).views.items():
        for loss, value in published(name, view).items():
            torch.testing.assert_close(value.detach(), losses.metrics[f"{name}/{loss}"])
            total = total + value
    total.backward()  # type: ignore[no-untyped-call]
    theirs = dict(published.model.named_parameters())
    for name, parameter in ours.model.named_parameters():
        torch.testing.assert_close(theirs[name].grad, parameter.grad, rtol=1e-4, atol=1e-5)


def test_lengths_are_those_of_captions_or_all_the_longest() -> None:
    real, full = (StepCase(full=full, model=TINY.model, rows=200).batch(0) for full in (False, True))
    length = real.views["image_text"].texts[0].mask_BL.sum(1).double()
    assert 15 < length.mean() < 16.5
    assert length.max() <= 40
    assert full.views["text_pair"].texts[0].mask_BL.all()
    assert full.views["image_text"].masked.slot_T.shape == (200 * 12,)


def test_the_loop_updates_as_the_published_rule_does() -> None:
    found = []
    for make in (LoopAdamW, PublishedAdamW):
        torch.manual_seed(0)
        weight = torch.nn.Parameter(torch.randn(5))
        group = {"params": [weight], "weight_decay": 0.1}
        if make is LoopAdamW:
            optimizer: torch.optim.Optimizer = LoopAdamW([group], OPTIMIZER)
        else:
            optimizer = PublishedAdamW([group], lr=OPTIMIZER.learning_rate, betas=OPTIMIZER.betas, eps=OPTIMIZER.eps)
        for _ in range(3):
            weight.grad = torch.randn(5)
            optimizer.step()
        found.append(weight.detach())
    torch.testing.assert_close(*found)


def test_a_measurement_gives_times_and_ratios() -> None:
    timing = {side: benchmark.measure(side, TINY, 2, torch.get_num_threads()) for side in ("ours", "published")}
    found = {(side, "real"): benchmark.joined([value]) for side, value in timing.items()}
    assert len(timing["ours"].wall_s) == 2
    assert set(found["ours", "real"]["phases_cpu_s"]) == set(benchmark.PHASES)
    ratios = benchmark.ratios(found | {("deepspeed", "real"): found["ours", "real"]})
    assert ratios["speedup_real_lengths"] > 0
    assert ratios["memory_ratio"] > 0
    assert ratios["engine_overhead"] == 0


@pytest.mark.slow
def test_the_deepspeed_side_trains() -> None:
    with ExitStack() as stack:
        step = benchmark.make_step("deepspeed", TINY, stack)
        assert set(step(0)) == set(benchmark.PHASES)
