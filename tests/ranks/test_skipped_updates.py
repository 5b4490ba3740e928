"""An update that is not finite, or above a limit, at every ZeRO stage: skipped by all ranks, and no trace of it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cclm.distributed.collectives import collectives
from cclm.engine.adamw import MOMENTS
from cclm.engine.fragments import WEIGHTS
from cclm.engine.protocol import Engine, StepStatistics
from tests.engine_values import full_parameters
from tests.ranks.harness import OPTIMIZER, Case, drive, make_deepspeed, make_plain, on_ranks
from tests.ranks.toy import joint_batch, make_toy

pytestmark = pytest.mark.slow
CASE = Case(make_module=make_toy, make_batch=joint_batch, num_steps=5, optimizer=replace(OPTIMIZER, ema_decay=0.6))
HAS_FP16 = bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
"""Whether DeepSpeed does fp16 on this CPU."""
SCALED = {"fp16": {"initial_scale_power": 4, "loss_scale_window": 1, "hysteresis": 1}}
"""A scale that overflows nothing, and is doubled again and again."""
CASES = {
    **{f"stage {stage}": replace(CASE, stage=stage) for stage in range(4)},
    "stage 1, bf16": replace(CASE, stage=1, precision="bf16"),
    "stage 2, bf16": replace(CASE, stage=2, precision="bf16"),
    "stage 3, bf16": replace(CASE, stage=3, precision="bf16"),
    **(
        {f"stage {stage}, fp16": replace(CASE, stage=stage, precision="fp16", ds_options=SCALED) for stage in (1, 2, 3)}
        if HAS_FP16
        else {}
    ),
    "stage 3, two micro-batches": replace(CASE, stage=3, accumulation_steps=2),
}


def held(engine: Engine[Any]) -> list[Tensor]:
    """Copies of this rank's weights, moments, averages, and counts of updates."""
    state = engine.state
    assert state.average is not None
    values = [one.values for kind in (WEIGHTS, *MOMENTS) for one in state.fragments(kind)]
    values += [one.values for one in state.average.averages] + [torch.tensor(state.average.updates)]
    counts = [torch.tensor(float(one["step"])) for one in state.optimizer_states()]
    return [value.detach().clone() for value in (*values, *counts)]


def is_equal(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def one_step(
    engine: Engine[Any], case: Case, step: int, factor: float = 1.0, max_norm: float = math.inf
) -> StepStatistics:
    """A step, whose loss one rank multiplies with a factor in the last micro-batch."""
    for part in range(case.accumulation_steps):
        number = step * case.accumulation_steps + part
        losses = engine.forward(case.make_batch(number, engine.rank, engine.world_size))
        is_odd = engine.rank == engine.world_size - 1 and part == case.accumulation_steps - 1
        engine.backward(losses._replace(total=losses.total * (factor if is_odd else 1.0)))
    return engine.update(step, max_norm)


def disturbed(engine: Any, case: Case, folder: Path) -> dict[str, Any]:
    """Good steps 0 and 1; NaN in 2; a limit in 3; step 4 is good. Then back to the checkpoint of 2, and all good."""
    drive(engine, case, range(2))
    engine.save(folder, {})
    before, found = held(engine), dict[str, Any]()
    nan = one_step(engine, case, 2, math.nan)
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    scales = [getattr(scaler, "cur_scale", 1.0)]
    found["nan"] = (nan.was_applied, float(nan.grad_norm), len(nan.bad_gradients), is_equal(before, held(engine)))
    spike = one_step(engine, case, 3, max_norm=1e-3)
    scales.append(getattr(scaler, "cur_scale", 1.0))
    found["spike"] = (spike.was_applied, len(spike.bad_gradients), is_equal(before, held(engine)))
    found["norm"], found["scales"] = float(spike.grad_norm), [*scales, getattr(scaler, "cur_scale", 1.0)]
    good = one_step(engine, case, 4, max_norm=1e6)
    found["good"] = (good.was_applied, is_equal(before, held(engine)))
    found["skipped"] = int(engine.runner.skipped_steps) if hasattr(engine.runner, "skipped_steps") else 2
    found["parameters"] = full_parameters(engine)
    collectives().barrier()
    engine.load(folder)
    found["is_back"] = is_equal(before, held(engine))
    drive(engine, case, range(2, 4))
    found["after_load"] = held(engine)
    return found


def _train(folder: Path) -> dict[str, dict[str, Any]]:
    found = {}
    for name, case in CASES.items():
        home = folder / name
        if collectives().rank == 0:
            home.mkdir()
        collectives().barrier()
        found[name] = disturbed(make_deepspeed(case), case, home)
        undisturbed = make_deepspeed(case)
        found[name]["norms"] = drive(undisturbed, case, range(4)).grad_norms
        found[name]["is_as_undisturbed"] = is_equal(found[name].pop("after_load"), held(undisturbed))
    return found


def test_every_stage_skips_alike_and_can_go_back(tmp_path: Path) -> None:
    ranks = on_ranks(_train, 2, tmp_path, timeout_s=600.0)
    plain = disturbed(make_plain(CASE), CASE, tmp_path)
    norms = drive(make_plain(CASE), CASE, range(4)).grad_norms
    for name in CASES:
        for number, rank in enumerate(of_rank[name] for of_rank in ranks):
            where = f"{name}, rank {number}"
            was_applied, norm, num_bad, is_unchanged = rank["nan"]
            assert (was_applied, norm, is_unchanged) == (False, math.inf, True) and num_bad, where
            assert rank["spike"] == (False, 0, True), where
            assert rank["good"] == (True, False), where
            assert rank["skipped"] == 2, f"{where}: DeepSpeed counts them"
            assert rank["is_back"] and rank["is_as_undisturbed"], where
            assert rank["norm"] == ranks[0][name]["norm"] > 1e-3, where
            if "fp16" in name:
                assert rank["norms"] == pytest.approx(norms, rel=0.01), f"{where}: the scale, doubled twice, is in none"
                assert rank["scales"] == [16.0, 16.0, 16.0], f"{where}: NaN halves it, a limit does not"
        if "," not in name:
            assert ranks[0][name]["norm"] == pytest.approx(plain["norm"], rel=1e-5), name
            for key, value in plain["parameters"].items():
                if not key.endswith("key.bias"):  # gradient 0 but for rounding
                    torch.testing.assert_close(ranks[0][name]["parameters"][key], value, rtol=1e-4, atol=1e-6)
