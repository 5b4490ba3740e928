"""What the DeepSpeed engine refuses, and how it behaves where no twin is needed."""

from __future__ import annotations

import inspect
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

from cclm.data.batch import Batch
from cclm.distributed.collectives import Collectives, collectives, reduce_scatter
from cclm.distributed.topology import Topology
from cclm.engine.deepspeed import quirks
from cclm.engine.deepspeed.engine import DeepSpeedEngine
from cclm.engine.protocol import Losses
from cclm.errors import ConfigError
from tests.engine_values import full_parameters
from tests.ranks.harness import OPTIMIZER, Case, drive, ds_config, make_deepspeed, on_ranks, train_plain, train_ranks
from tests.ranks.toy import joint_batch, make_toy, mixed_batch
from tests.waits import waits_on_cpu

CASE = Case(make_module=make_toy, make_batch=mixed_batch, num_steps=2)
ALONE = Topology.from_environment({}, device="cpu")


def test_parameters_without_dimensions_are_refused_by_name() -> None:
    module = nn.Linear(2, 2)
    module.logit_scale = nn.Parameter(torch.tensor(1.0))
    with pytest.raises(ConfigError, match=r"shape \(\): logit_scale\. Give them the shape \(1,\)"):
        DeepSpeedEngine(module, OPTIMIZER, ds_config=ds_config(CASE, 1), topology=ALONE)


def _start(folder: str) -> list[str]:
    """DeepSpeed would compile into this folder, and wait for a lock that a killed process left."""
    os.environ["TORCH_EXTENSIONS_DIR"] = folder
    drive(make_deepspeed(CASE), CASE, range(1))
    return sorted(path.name for path in Path(folder).rglob("*"))


@pytest.mark.slow
def test_nothing_is_compiled_at_the_start(tmp_path: Path) -> None:
    assert on_ranks(_start, 2, str(tmp_path)) == [[], []]


def test_the_constructor_has_few_arguments() -> None:
    assert len(inspect.signature(DeepSpeedEngine).parameters) <= 7


@pytest.mark.slow
def test_one_rank_equals_plain() -> None:
    assert train_ranks(CASE, world_size=1)[0].losses == pytest.approx(train_plain(CASE).losses, rel=1e-5)


def _make_rank_dependent(talk: Collectives) -> nn.Module:
    torch.manual_seed(talk.rank)
    return make_toy(talk)


@pytest.mark.slow
def test_rank_0_decides_the_initial_weights() -> None:
    histories = train_ranks(replace(CASE, make_module=_make_rank_dependent, make_batch=joint_batch))
    plain = train_plain(replace(CASE, make_module=_make_rank_dependent, make_batch=joint_batch))
    assert histories[0].losses == pytest.approx(plain.losses, rel=1e-5)


def _waits_of_an_update(case: Case) -> dict[tuple[str, str], int]:
    engine = make_deepspeed(case)
    engine.backward(engine.forward(case.make_batch(0, 0, 1)))
    with waits_on_cpu() as waits:
        engine.update(0)
    return dict(waits.found)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 3])
def test_an_update_waits_for_the_device_only_to_learn_whether_gradients_are_finite(stage: int) -> None:
    [found] = on_ranks(_waits_of_an_update, 1, replace(CASE, stage=stage))
    own = [place for _, place in found if not place.startswith("deepspeed/")]
    assert [place.rpartition(":")[0] for place in own] == (["cclm/engine/deepspeed/skipping.py"] if stage == 0 else [])
    assert stage == 0 or found, "DeepSpeed asks itself"


def _places(case: Case) -> list[tuple[bool, bool]]:
    """Of each group: whether its weights are those that are gathered, and its gradients those that were reduced."""
    engine = make_deepspeed(case)
    zero, found = engine.optimizer, list[tuple[bool, bool]]()
    update = zero._optimizer_step

    def look(group: int) -> None:
        weights, gathered = zero.fp32_partitioned_groups_flat[group], zero.fp16_partitioned_groups_flat[group]
        buffer = zero.grad_partitions_flat_buffer.untyped_storage().data_ptr()
        found.append((weights.data_ptr() == gathered.data_ptr(), weights.grad.untyped_storage().data_ptr() == buffer))
        update(group)

    zero._optimizer_step = look
    drive(engine, case, range(1))
    return found


@pytest.mark.slow
def test_nothing_is_copied_that_is_there() -> None:
    for found in on_ranks(_places, 2, replace(CASE, zero_options={"sub_group_size": 10_000})):
        assert len(found) > 2 and all(weights and gradients for weights, gradients in found)
    for found in on_ranks(_places, 2, replace(CASE, precision="bf16")):
        assert len(found) == 2 and all(not weights and gradients for weights, gradients in found)


def test_tensors_in_a_row_are_not_copied_others_are() -> None:
    whole = torch.arange(6.0)
    for parts, is_view in (
        ([whole[:2], whole[2:]], True),
        ([whole[2:], whole[:2]], False),
        ([whole[:2], whole[3:]], False),
    ):
        found = quirks._in_a_row(torch.cat, parts)
        assert found.tolist() == torch.cat(parts).tolist() and (found.data_ptr() == whole.data_ptr()) == is_view


def _threads(case: Case) -> list[int]:
    """While DeepSpeed builds its engine, and behind it."""
    import deepspeed

    seen, initialize = list[int](), deepspeed.initialize
    torch.set_num_threads(2)

    def look(**options: Any) -> Any:
        seen.append(torch.get_num_threads())
        return initialize(**options)

    with patch.object(deepspeed, "initialize", look):
        make_deepspeed(case)
    return [*seen, torch.get_num_threads()]


@pytest.mark.slow
def test_a_rank_has_its_threads_back() -> None:
    assert on_ranks(_threads, 1, CASE) == [[1, 2]]


def _reduce_scatter(dtype: torch.dtype) -> list[Tensor]:
    ranks, found = collectives(), []
    for width in (1, 5):
        parts = torch.arange(3.0 * width).view(3, width).to(dtype) + 10 * ranks.rank
        reduce_scatter(parts[ranks.rank], parts)
        found.append(parts[ranks.rank])
    return found


@pytest.mark.slow
def test_a_rank_gets_the_sum_of_its_part_where_the_part_was() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        for rank, found in enumerate(on_ranks(_reduce_scatter, 3, dtype)):
            for own in found:
                first = rank * len(own)
                assert own.tolist() == [30.0 + 3 * value for value in range(first, first + len(own))]


def _meet_a_nan(case: Case) -> tuple[float, bool, list[float]]:
    engine = make_deepspeed(case)
    before = full_parameters(engine)
    batch = case.make_batch(0, engine.rank, engine.world_size)
    if engine.rank == 1:
        batch.views["image_text"].images[0, 0, 0, 0] = math.inf
    engine.backward(engine.forward(batch))
    norm = float(engine.update(0).grad_norm)
    after = full_parameters(engine)
    is_same = all(torch.equal(before[name], after[name]) for name in before)
    return norm, is_same, drive(engine, case, range(1, 2)).losses


@pytest.mark.slow
def test_a_gradient_that_is_not_finite_on_one_rank_changes_nothing_on_any() -> None:
    for norm, is_same, losses in on_ranks(_meet_a_nan, 2, CASE):
        assert norm == math.inf
        assert is_same
        assert math.isfinite(losses[0])


def _reduce(case: Case) -> dict[str, float]:
    engine = make_deepspeed(case)
    values: Any = {"z": torch.tensor(float(engine.rank)), "a": torch.tensor([4.0 * engine.rank])}
    assert engine.reduce_mean({}) == {}
    return engine.reduce_mean(values)


@pytest.mark.slow
def test_reduce_mean_keeps_the_order_of_keys() -> None:
    for means in on_ranks(_reduce, 2, CASE):
        assert list(means.items()) == [("z", 0.5), ("a", 2.0)]


class Bilinear(nn.Module):
    """A training module whose own parameter is needed in the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(8) + 0.1)

    def forward(self, batch: Batch) -> Losses:
        x_B8 = batch.views["image_text"].images[:, 0, 0]
        total = (x_B8 @ self.weight @ self.weight).square().mean()
        return Losses(total=total, metrics={"loss": total.detach()})


def _make_bilinear(talk: Collectives) -> nn.Module:
    return Bilinear()


@pytest.mark.slow
def test_a_training_module_may_have_parameters_of_its_own() -> None:
    case = replace(CASE, make_module=_make_bilinear, make_batch=joint_batch, keeps_gradients=True)
    ours, expected = train_ranks(case)[0], train_plain(case)
    assert ours.losses == pytest.approx(expected.losses, rel=1e-5)
    for mine, reference in zip(ours.gradients, expected.gradients, strict=True):
        torch.testing.assert_close(mine["weight"], reference["weight"])
