from __future__ import annotations

from math import log
from pathlib import Path

import pytest
import torch

from cclm.model.heads import LogTemperature, Temperature
from tests.unit.model.tiny import tiny_images, tiny_model, tiny_texts


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


@pytest.mark.parametrize(("temperature", "expected"), [(0.07, 0.07), (0.0001, 0.001), (0.9, 0.5), (0.5, 0.5)])
def test_the_logarithm_is_clamped_too(temperature: float, expected: float) -> None:
    module = LogTemperature(0.07, 0.001, 0.5)
    assert module.value.shape == (1,)
    torch.testing.assert_close(module.value.data, torch.tensor([log(1 / 0.07)]))
    module.value.data.fill_(-log(temperature))
    torch.testing.assert_close(module(), torch.tensor([expected]))


def test_a_step_on_the_logarithm_is_a_factor() -> None:
    changes = []
    for start in (0.01, 0.1):
        module = LogTemperature(start, 0.001, 0.5)
        optimizer = torch.optim.Adam([module.value], lr=0.1)
        (-module()).sum().backward()
        optimizer.step()
        changes.append(module().item() / start)
    assert changes[0] == pytest.approx(changes[1], rel=1e-5)
    assert changes[0] == pytest.approx(2.718281828**0.1, rel=1e-4)


@pytest.mark.parametrize(("overshoot", "leads_back"), [(-log(0.9), 0.3), (-log(0.0001), 0.01)])
def test_descent_brings_the_logarithm_back(overshoot: float, leads_back: float) -> None:
    module = LogTemperature(0.07, 0.001, 0.5)
    module.value.data.fill_(overshoot)
    optimizer = torch.optim.SGD([module.value], lr=0.2)
    for _ in range(200):
        optimizer.zero_grad()
        (module().log() - log(leads_back)).square().sum().backward()
        optimizer.step()
    assert module().item() == pytest.approx(leads_back, rel=1e-2)


def test_a_model_carries_its_form(tmp_path: Path) -> None:
    model = tiny_model(temperature_form="log", initial_temperature=0.05)
    torch.testing.assert_close(model.temperature(), torch.tensor([0.05]))
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert isinstance(loaded.temperature, LogTemperature)
    ids_BL, mask_BL = tiny_texts()
    with torch.no_grad():
        expected, found = (item(tiny_images(), ids_BL, mask_BL).logits_per_image for item in (model, loaded.eval()))
    torch.testing.assert_close(found, expected)
