"""In bf16 gradients are reduced over ranks, and accumulated over micro-batches, in fp32, unless a config says bf16.

The gradients are 256 and 1, which bf16 holds; their mean 128.5 it does not: it would make 128 of it. What the optimizer
got is read from its first moment, whose factor is a power of two. The batch is none of `cclm.data`: engines take any.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cclm.distributed.topology import Topology
from cclm.engine.ds_config import EngineFacts, resolve_ds_config
from cclm.engine.options import OptimizerConfig
from cclm.engine.protocol import Losses
from tests.ranks.harness import on_ranks

pytestmark = pytest.mark.slow
OPTIMIZER = OptimizerConfig(total_steps=10, betas=(0.5, 0.5), max_grad_norm=0.0)


@dataclass(frozen=True)
class Factor:
    """A batch of one number."""

    value: float
    step: int = 0
    update: int = 0
    part: int = 0


class Times(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(64))

    def forward(self, batch: Factor) -> Losses:
        total = (self.weight * batch.value).sum()
        return Losses(total=total, metrics={"loss": total.detach()})


def _gradient_seen(raw: dict[str, Any], across: str) -> Tensor:
    """What the optimizer was given, on this rank."""
    from cclm.engine.deepspeed.engine import DeepSpeedEngine

    topology = Topology.from_environment(device="cpu")
    steps = 2 if across == "micro-batches" else 1
    facts = EngineFacts(
        micro_batch_size=1,
        world_size=topology.world_size,
        max_grad_norm=0.0,
        precision="bf16",
        accumulation_steps=steps,
    )
    engine: DeepSpeedEngine[Factor] = DeepSpeedEngine(
        Times(),
        OPTIMIZER,
        ds_config=resolve_ds_config(raw, facts),
        topology=topology,
    )
    for value in (256.0, 1.0) if steps == 2 else ((256.0, 1.0)[topology.rank],):
        engine.backward(engine.forward(Factor(value)))
    engine.update(0)
    return torch.cat([one.values.clone() for one in engine.state.fragments("exp_avg")]) * 2


def _config(name: str, **changes: Any) -> dict[str, Any]:
    raw = json.loads(Path(f"ds_configs/{name}.json").read_text())
    raw["zero_optimization"].pop("offload_param", None)
    if "offload_optimizer" in raw["zero_optimization"]:  # without compiling DeepSpeed's AdamW
        raw["zero_optimization"]["offload_optimizer"] = {"device": "cpu", "pin_memory": False}
        raw["zero_force_ds_cpu_optimizer"] = False
    return {key: value for key, value in {**raw, **changes}.items() if value is not None}


@pytest.mark.parametrize("across", ["ranks", "micro-batches"])
@pytest.mark.parametrize("name", ["zero1_bf16", "zero2_bf16", "zero3_bf16", "zero3_offload"])
def test_shipped_configs_sum_in_fp32(name: str, across: str) -> None:
    for seen in on_ranks(_gradient_seen, 2, _config(name), across):
        assert seen.tolist() == [128.5] * len(seen) and len(seen) > 0


@pytest.mark.parametrize("across", ["ranks", "micro-batches"])
@pytest.mark.parametrize("name", ["zero1_bf16", "zero2_bf16", "zero3_bf16"])
def test_so_do_configs_that_do_not_say_it(name: str, across: str) -> None:
    without = _config(name, communication_data_type=None, data_types=None)
    for seen in on_ranks(_gradient_seen, 2, without, across):
        assert seen.tolist() == [128.5] * len(seen) and len(seen) > 0


@pytest.mark.parametrize(
    ("name", "across", "change"),
    [
        ("zero2_bf16", "ranks", {"communication_data_type": "bf16"}),
        ("zero3_bf16", "ranks", {"communication_data_type": "bf16"}),
        ("zero2_bf16", "micro-batches", {"data_types": {"grad_accum_dtype": "bf16"}}),
        ("zero3_bf16", "micro-batches", {"data_types": {"grad_accum_dtype": "bf16"}}),
    ],
)
def test_each_of_the_two_keys_is_needed(name: str, across: str, change: dict[str, Any]) -> None:
    seen = on_ranks(_gradient_seen, 2, _config(name, **change), across)[0]
    assert seen.tolist() == [128.0] * len(seen)
