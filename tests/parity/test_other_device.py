"""A run on a device that is no CPU (`tests/other_device.py`): nothing mixes devices, and losses are a CPU's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.tiny_run import recipe, with_regions, write_corpus

FROZEN = ["model.text_encoder.embeddings", "model.text_encoder.stack.layers.0"]
STEADY = {"dropout": 0.0, "attention_dropout": 0.0}
"""Dropout is drawn in the order of the layout, which differs."""


def settings_of(corpus: Path, run: Path, kind: str) -> dict[str, Any]:
    settings = with_regions(recipe(corpus, run), corpus)
    model = settings["model"]
    for part in ("text", "fusion"):
        model[part] = {**model[part], **STEADY, "num_layers": 2}
    settings |= {"engine": "plain", "kernels": {"attention": "sdpa", "dropout": "torch"}}
    settings["track"] |= {"every_steps": 1}
    settings["optimizer"] |= {"total_steps": 4, "ema_decay": 0.9}
    if kind == "alternate":
        settings["data"] |= {"schedule": "alternate"}
        settings["start"] = {"freeze": FROZEN, "remember_bytes": 1_000_000}
    else:
        settings["data"] |= {"micro_batches": 2}
        settings["objectives"] |= {"contrastive_hardness": 0.5, "matryoshka_widths": [4, 8]}
    return settings


def losses_of(folder: Path, settings: dict[str, Any], device: str) -> dict[str, Any]:
    path = folder / f"{device}.yaml"
    path.write_text(yaml.safe_dump({**settings, "run_folder": str(folder / device)}), encoding="utf-8")
    command = [sys.executable, "-m", "tests.other_device", str(path), device]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert ended.returncode == 0, ended.stderr[-3000:]
    found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["joint", "alternate"])
def test_a_run_on_another_device_is_that_on_a_cpu(tmp_path: Path, kind: str) -> None:
    settings = settings_of(write_corpus(tmp_path / "corpus"), tmp_path, kind)
    other, cpu = (losses_of(tmp_path, settings, device) for device in ("other", "cpu"))
    assert other["mixed"] == []
    assert other["losses"] == pytest.approx(cpu["losses"], rel=1e-6)
    assert len(other["losses"]) >= 4


MIX = """
import torch
from tests.other_device import OtherTensor, other_device
with other_device() as mixed:
    values = torch.ones(3, device="other")
    assert isinstance(values, OtherTensor) and (values * 2 + torch.tensor(1.0)).sum().item() == 9 and not mixed
    values.cpu() + torch.zeros(3)
    assert not mixed
    values + torch.zeros(3)
assert len(mixed) == 1, mixed
"""


@pytest.mark.slow
def test_what_a_gpu_would_refuse_is_noted() -> None:
    subprocess.run([sys.executable, "-c", MIX], check=True, timeout=120)
