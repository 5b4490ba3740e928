"""Every state, feature, similarity, loss and gradient of the golden cases."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cclm.pretrained.published_names import to_published
from tests.golden.cases import Outcome, Runner
from tests.golden.sets import GoldenSet

ABSOLUTE, RELATIVE = 1e-5, 1e-4
"""Of forward values; the recorded runs agree with each other to 1e-6 of each tensor's largest value."""
GRADIENT = 1e-4
"""Of the tensor's largest gradient."""
TEMPERATURE_GRADIENT = 5e-4
"""Its terms cancel, so rounding shows."""
CASES = ("img1", "itc2", "region", "region_all", "para", "tlm", "padid")


def run(golden: GoldenSet, case: str, layout: str = "auto") -> tuple[Outcome, dict[str, Tensor]]:
    """Losses and gradients under published names; None-gradients are left out."""
    if case not in golden.cases:
        pytest.skip(f"{golden.folder.name} has no case {case}")
    model = golden.model(layout)
    outcome = Runner(model).run(case, golden.inputs(case), golden.negatives(case))
    outcome.total().backward()
    ours = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    return outcome, to_published(ours, golden.weights)


def expect_close(value: Tensor, expected: Tensor, name: str) -> None:
    """Absolute and relative to the tensor's largest value."""
    scale = expected.abs().max().item()
    worst = (value - expected).abs().max().item()
    assert worst <= ABSOLUTE + RELATIVE * scale, f"{name}: off by {worst:.2e} at a scale of {scale:.2e}"


def real_tokens(golden: GoldenSet, case: str, name: str, value: Tensor) -> Tensor:
    """Where a value of token states counts: padding is zero here, and something that nobody reads there."""
    inputs = golden.inputs(case)
    mask = inputs["text_atts"].bool()
    first, second = (draws for draws in golden.negatives(case) or (torch.zeros(0), torch.zeros(0)))
    query = inputs["text_atts_2"].bool() if case in ("para", "tlm") else mask
    masks = {
        "text_embeds": mask,
        "text_embeds#1": inputs.get("text_atts_2", mask).bool(),
        "text_embeds_masked": inputs.get("text_atts_masked", mask).bool(),
        "cross_embeds": query,
        "cross_embeds#1": torch.cat([query, query[second.long()]]),
        "cross_embeds#2": mask,
        "cross_embeds_mlm": inputs.get("text_atts_masked", mask).bool(),
    }
    assert first.shape == second.shape
    return value[masks[name]] if name in masks else value


def test_every_recorded_case_is_compared(golden: GoldenSet) -> None:
    assert set(golden.cases) <= set(CASES)


@pytest.mark.parametrize("case", CASES)
def test_values_losses_and_gradients(golden: GoldenSet, case: str) -> None:
    outcome, gradients = run(golden, case)
    meta = golden.meta["cases"][case]
    losses = outcome.losses
    assert set(losses) == set(meta["loss"])
    for name, expected in meta["loss"].items():
        assert losses[name].item() == pytest.approx(expected, abs=ABSOLUTE, rel=RELATIVE), name
    assert outcome.total().item() == pytest.approx(meta["total"], abs=ABSOLUTE, rel=RELATIVE)
    compared = 0
    for name, value in outcome.values.items():
        expected_value = golden.acts.get(f"{case}.{name}")
        if expected_value is not None:
            ours, theirs = (real_tokens(golden, case, name, tensor) for tensor in (value.detach(), expected_value))
            expect_close(ours.float(), theirs.float(), f"{case}.{name}")
            compared += 1
    assert compared or case == "region_all"
    compare_gradients(golden, case, gradients)


def compare_gradients(golden: GoldenSet, case: str, gradients: dict[str, Tensor]) -> None:
    """The recorded tensors whole, and the norm of every parameter's gradient."""
    prefix = f"{case}.grad."
    for key, expected in golden.acts.items():
        if key.startswith(prefix):
            name = key.removeprefix(prefix)
            worst = (gradients[name] - expected).abs().max().item()
            allowed = TEMPERATURE_GRADIENT if name == "temp" else GRADIENT
            assert worst <= allowed * expected.abs().max().item(), f"{key}: off by {worst:.2e}"
    norms = golden.meta["cases"][case]["grad_norm"]
    tied = {"text_encoder.cls.predictions.decoder.weight", "text_encoder.cls.predictions.decoder.bias"}
    largest = max(norm for norm in norms.values() if norm is not None)
    for name, norm in norms.items():
        if name in tied or name == "mlm_head.predictions.decoder.bias":
            continue
        found = gradients[name].norm().item() if name in gradients else 0.0
        slack = TEMPERATURE_GRADIENT if name == "temp" else GRADIENT
        assert found == pytest.approx(norm or 0.0, rel=slack, abs=1e-6 * largest), name
