"""The same numbers through the training step itself: losses, gradients, two updates, and two ranks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cclm.distributed.collectives import collectives
from cclm.engine.plain import PlainEngine
from cclm.objectives.options import ObjectiveConfig
from cclm.pretrained.published_names import to_published
from cclm.train.step import CrossViewTraining
from tests.golden.batches import NAMES, batch_of, together, training_of, view_of
from tests.golden.sets import GoldenSet, golden_set
from tests.golden.test_cases import ABSOLUTE, CASES, RELATIVE, compare_gradients
from tests.golden.test_optimizer import compare, draws_of, optimizer_config
from tests.golden.test_two_ranks import WORLD, expect_gradient, half_of, published
from tests.ranks.spawn import on_ranks


def gradients_of(module: CrossViewTraining, golden: GoldenSet) -> dict[str, Tensor]:
    """Under published names."""
    ours = {name: value.grad for name, value in module.model.named_parameters() if value.grad is not None}
    return to_published(ours, golden.weights)


@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients_of_a_step(golden: GoldenSet, case: str) -> None:
    if case not in golden.cases:
        pytest.skip(f"{golden.folder.name} has no case {case}")
    meta, inputs = golden.meta["cases"][case], golden.inputs(case)
    batch = batch_of(inputs, golden.negatives(case))
    module = training_of(golden.model(), batch, tlm=case == "tlm")
    losses = module(batch)
    view = view_of(inputs)
    found = {name: value for name, value in losses.metrics.items() if name.startswith(view)}
    for name, expected in meta["loss"].items():
        value = found.pop(f"{view}/{NAMES[view][name]}").item()
        assert value == pytest.approx(expected, abs=ABSOLUTE, rel=RELATIVE), name
    assert all(name.endswith(("_accuracy", "_rows")) for name in found), "no loss that the published step has not"
    assert losses.total.item() == pytest.approx(meta["total"], abs=ABSOLUTE, rel=RELATIVE)
    losses.total.backward()
    compare_gradients(golden, case, gradients_of(module, golden))


def test_two_updates_of_the_engine(golden: GoldenSet) -> None:
    """X2VLM: a joint step of three views is one update; CCLM: two captions.

    Not compared: the box head where no update uses it. The published optimizer leaves alone what never had a gradient;
    an engine, whose gradients are zero instead, decays it (here by 2e-5 of itself).
    """
    record, config = golden.tensors("optim_steps"), optimizer_config(golden)
    model = golden.model()
    multipliers = {f"model.{name}": value for name, value in config.module_multipliers.items()}
    cases = ("img1", "region", "para") if golden.is_x2vlm else ("itc2",)
    batches = [
        together(*(batch_of(golden.inputs(case), draws_of(golden, record, step, case)) for case in cases))
        for step in (0, 1)
    ]
    module: nn.Module = training_of(model, batches[0]).eval()
    engine = PlainEngine(module, replace(config, module_multipliers=multipliers))
    for step, batch in enumerate(batches):
        losses = engine.forward(batch)
        assert losses.total.item() == pytest.approx(record[f"step{step}.loss"].item(), abs=1e-5, rel=1e-4)
        engine.backward(losses)
        norm = float(engine.update(step).grad_norm)
        assert norm == pytest.approx(record[f"step{step}.grad_norm_before_clip"].item(), rel=1e-4)
        compare(golden, model, record, step, unused="-" if golden.is_x2vlm else "bbox_head")


def step_on_half(folder: str) -> dict[str, Any]:
    """On one rank: the published means and the published gradient of the gather."""
    golden, talk = golden_set(Path(folder)), collectives()
    record = golden.tensors("world2")
    inputs = {name: value[half_of(value, talk.rank)] for name, value in golden.inputs("itc2").items()}
    first, second = record[f"rank{talk.rank}.neg_idx"].chunk(2)
    options = ObjectiveConfig(contrastive_grad_scale=1 / WORLD, means="per_rank")
    batch = batch_of(inputs, (first, second), first_row=talk.rank * first.shape[0])
    module = training_of(golden.model(), batch, options, talk)
    losses = module(batch)
    losses.total.backward()
    return {
        "metrics": {name: value.item() for name, value in losses.metrics.items()},
        "gradients": {name: value.clone() for name, value in gradients_of(module, golden).items()},
    }


@pytest.mark.slow
def test_a_step_on_two_ranks(golden: GoldenSet) -> None:
    record = golden.tensors("world2")
    ranks = on_ranks(step_on_half, WORLD, str(golden.folder), timeout_s=120)
    for name, ours in NAMES["image_text"].items():
        for rank in range(WORLD):
            values = [result["metrics"][f"image_text/{ours}"] for result in ranks]
            value = sum(values) / WORLD if ours in ("itc", "ttc") else values[rank]
            assert value == pytest.approx(record[f"rank{rank}.loss.{name}"].item(), abs=1e-5, rel=1e-4), name
    for name in (key.removeprefix("rank0.grad.") for key in record if key.startswith("rank0.grad.")):
        averaged = torch.stack([result["gradients"][name] for result in ranks]).mean(0)
        expect_gradient(averaged, published(record, "", name), name)
