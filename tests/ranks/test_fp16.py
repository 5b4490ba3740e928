"""fp16 with the real model: its losses are those of fp32, and what overflows is a bad step like any other."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from cclm.config import RunConfig
from cclm.engine.deepspeed import construction
from cclm.errors import ConfigError
from cclm.run.signals import StopRequest
from cclm.train.build import open_run
from cclm.train.loop import train
from tests.ranks.harness import on_ranks
from tests.tiny_run import recipe, write_corpus
from tests.tiny_training import as_config

HAS_FP16 = bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
"""Whether DeepSpeed does fp16 on this CPU."""


def _train(configs: dict[str, RunConfig]) -> None:
    for config in configs.values():
        with (
            patch("cclm.train.build.process_group", lambda topology: nullcontext()),
            open_run(config, StopRequest()) as run,
        ):
            assert run is not None and train(run)


def values_of(run: Path) -> list[dict[str, float]]:
    return [json.loads(line)["values"] for line in (run / "log.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.skipif(not HAS_FP16, reason="DeepSpeed does no fp16 on this CPU")
def test_losses_of_fp32_and_overflows_in_the_ledger_of_bad_steps(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path)
    (tmp_path / "large.json").write_text(
        json.dumps({"zero_optimization": {"stage": 3}, "fp16": {"initial_scale_power": 18, "hysteresis": 1}})
    )
    (tmp_path / "small.json").write_text(
        json.dumps({"zero_optimization": {"stage": 3}, "fp16": {"initial_scale_power": 6}})
    )
    kinds: dict[str, dict[str, Any]] = {
        "fp32": {}, "fp16": {"precision": "fp16", "deepspeed": str(tmp_path / "small.json")},
        "large": {"precision": "fp16", "deepspeed": str(tmp_path / "large.json"), "health": {"max_skipped": 20}},
    }  # fmt: skip
    optimizer, track = {"total_steps": 12, "learning_rate": 0.002}, {"every_steps": 1, "tensorboard": False}
    configs = {}
    for name, kind in kinds.items():
        settings = recipe(corpus, tmp_path / name, optimizer=optimizer, track=track, **kind)
        for part in ("text", "fusion"):  # which draws other numbers in fp16
            settings["model"][part] |= {"dropout": 0.0, "attention_dropout": 0.0}
        configs[name] = as_config(settings)
    on_ranks(_train, 2, configs)
    expected, found, large = (values_of(tmp_path / name) for name in kinds)
    assert [one["loss"] for one in found] == pytest.approx([one["loss"] for one in expected], rel=0.02)
    assert sum(one["skipped_updates"] for one in found) == 0
    skipped = [bool(one["skipped_updates"]) for one in large]
    first = skipped.index(False)
    assert 4 <= first < 11 and skipped == [True] * first + [False] * (12 - first), "the scale comes down, and stays"
    lines = [json.loads(line) for line in (tmp_path / "large" / "bad_steps.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(first))
    assert {line["why"] for line in lines} == {"gradient_not_finite"} and lines[0]["gradients"]


def test_without_fp16_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Accelerator:
        def is_fp16_supported(self) -> bool:
            return False

    class DeepSpeed:
        class accelerator:  # noqa: N801 - as DeepSpeed calls it
            get_accelerator = Accelerator

    monkeypatch.setattr(construction, "start_deepspeed", lambda device: DeepSpeed)
    topology: Any = type("Topology", (), {"device": torch.device("cpu")})
    with pytest.raises(ConfigError, match="precision: expected bf16 or fp32 on this device, got fp16"):
        construction._started({"fp16": {"enabled": True}}, topology)
    assert construction._started({"bf16": {"enabled": True}}, topology) is DeepSpeed
