from __future__ import annotations

import pytest
import torch

from cclm.model.temperature import Temperature


@pytest.mark.parametrize(("value", "expected"), [(0.07, 0.07), (0.0, 0.001), (0.9, 0.5), (0.5, 0.5)])
def test_it_is_clamped(value: float, expected: float) -> None:
    temperature = Temperature(0.07, 0.001, 0.5)
    temperature.value.data.fill_(value)
    assert temperature().shape == (1,)
    torch.testing.assert_close(temperature(), torch.tensor([expected]))


@pytest.mark.parametrize(
    ("value", "gradient", "passes"),
    [(0.07, 1.0, True), (0.07, -1.0, True), (0.0, 1.0, False), (0.0, -1.0, True), (0.9, -1.0, False), (0.9, 1.0, True)],
)
def test_the_gradient_never_pushes_further_outside_but_always_leads_back(
    value: float, gradient: float, passes: bool
) -> None:
    temperature = Temperature(0.07, 0.001, 0.5)
    temperature.value.data.fill_(value)
    (temperature() * gradient).sum().backward()
    assert temperature.value.grad is not None
    assert temperature.value.grad.item() == (gradient if passes else 0.0)


def test_descent_comes_back_from_an_overshoot() -> None:
    temperature = Temperature(0.01, 0.01, 0.5)
    optimizer = torch.optim.SGD([temperature.value], lr=0.01)
    for target in (0.0, 0.2):
        for _ in range(100):
            optimizer.zero_grad()
            (temperature() - target).square().sum().backward()
            optimizer.step()
    assert temperature().item() > 0.1
