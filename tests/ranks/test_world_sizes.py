"""A checkpoint goes on with another number of ranks: the same values bit by bit, and the same training."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from cclm.checkpoint.collective import save_checkpoint
from cclm.distributed.collectives import Collectives
from cclm.engine.adamw import MOMENTS
from cclm.engine.fragments import AVERAGE, WEIGHTS, ShareFacts, share_path
from cclm.engine.stored_weights import StoredState
from cclm.run.checkpoints import newest_complete, step_folder
from tests.parity.test_training_step import SHIPPED_FOR_CPU
from tests.ranks.harness import Case, drive, make_deepspeed, make_plain, on_ranks
from tests.ranks.toy import make_toy, mixed_batch
from tests.tiny_run import recipe, write_corpus, write_recipe
from tests.tiny_training import batch_of, module_on_one_thread

pytestmark = pytest.mark.slow

CASE = Case(make_module=make_toy, make_batch=mixed_batch, num_steps=6, persistence_threshold=100)
STOP, END = 3, 6


def _save(case: Case, run: Path) -> list[float]:
    engine = make_deepspeed(case)
    drive(engine, case, range(STOP))
    save_checkpoint(engine, run, STOP, {"seen": [1, 2]}, keep=2)
    return drive(engine, case, range(STOP, END)).losses


def _go_on(case: Case, run: Path, into: Path, steps: int) -> list[float]:
    """Load, save again at once, and train on."""
    engine = make_deepspeed(case)
    path = newest_complete(run)
    assert path is not None
    assert engine.load(path) == {"step": STOP, "state": {"seen": [1, 2]}}
    save_checkpoint(engine, into, STOP, {"seen": [1, 2]}, keep=2)
    return drive(engine, case, range(STOP, STOP + steps)).losses


def everything(checkpoint: Path) -> tuple[dict[str, Tensor], ShareFacts]:
    """Weights, moments, averages and buffers by kind and name, and the rest."""
    stored = StoredState(checkpoint)
    kinds = {kind: stored.tensors(kind) for kind in (WEIGHTS, *MOMENTS, AVERAGE)} | {"buffers": stored.buffers()}
    tensors = {f"{kind}/{name}": one.whole() for kind, found in kinds.items() for name, one in found.items()}
    return tensors, replace(stored.facts, world_size=0, places={})


@pytest.mark.parametrize(
    ("stage", "precision", "before", "after"),
    [(3, "fp32", 2, 1), (3, "fp32", 1, 4), (3, "bf16", 4, 2), (2, "bf16", 2, 4), (1, "fp32", 4, 2)],
)
def test_the_same_values_and_the_same_training(
    tmp_path: Path, stage: int, precision: str, before: int, after: int
) -> None:
    case = replace(CASE, stage=stage, precision=precision)
    straight = on_ranks(_save, before, case, tmp_path / "old")[0]
    resumed = on_ranks(_go_on, after, case, tmp_path / "old", tmp_path / "new", END - STOP)[0]
    old, facts = everything(step_folder(tmp_path / "old", STOP))
    new, facts_again = everything(step_folder(tmp_path / "new", STOP))
    assert facts == facts_again and facts.updates == STOP
    assert old.keys() == new.keys() and sum("exp_avg_sq/" in name for name in old) > 10
    assert all(torch.equal(value, new[name]) for name, value in old.items())
    assert any(value.abs().max() > 0 for name, value in old.items() if name.startswith("exp_avg/"))
    tolerance = 1e-5 if precision == "fp32" else 2e-2  # sums of gradients in another order; bf16 has eight bits
    torch.testing.assert_close(torch.tensor(resumed), torch.tensor(straight), rtol=tolerance, atol=tolerance)


def test_a_number_of_ranks_that_divides_nothing(tmp_path: Path) -> None:
    """Three ranks: every parameter ends in padding somewhere. No step: the toy's batch has eight samples."""
    on_ranks(_save, 2, CASE, tmp_path / "two")
    on_ranks(_go_on, 3, CASE, tmp_path / "two", tmp_path / "three", 0)
    on_ranks(_go_on, 2, CASE, tmp_path / "three", tmp_path / "back", 0)
    old, back = (everything(step_folder(tmp_path / name, STOP)) for name in ("two", "back"))
    assert old[1] == back[1]
    assert all(torch.equal(value, back[0][name]) for name, value in old[0].items())


def test_averages_come_along(tmp_path: Path) -> None:
    case = replace(CASE, optimizer=replace(CASE.optimizer, ema_decay=0.9))
    on_ranks(_save, 2, case, tmp_path / "old")
    on_ranks(_go_on, 1, case, tmp_path / "old", tmp_path / "new", 0)
    old, new = (everything(step_folder(tmp_path / name, STOP)) for name in ("old", "new"))
    assert old[1] == new[1] and new[1].average_updates == STOP
    assert sum(name.startswith("average/") for name in old[0]) > 10 and old[0].keys() == new[0].keys()
    assert all(torch.equal(value, new[0][name]) for name, value in old[0].items())


def _make_with_fixed_parts(collectives: Collectives) -> nn.Module:
    """A frozen layer, of which ZeRO-3 keeps the bias whole, and a buffer; they have other values at every start."""
    module = make_toy(collectives)
    generator = torch.Generator().manual_seed(time.time_ns())
    fixed = nn.Linear(30, 17)
    for parameter in fixed.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    fixed.requires_grad_(False).register_buffer("mean", torch.randn(5, generator=generator))
    module.fixed = fixed
    return module


@pytest.mark.parametrize("stage", [3, 1])
def test_what_no_update_moves_comes_along(tmp_path: Path, stage: int) -> None:
    case = replace(CASE, make_module=_make_with_fixed_parts, stage=stage)
    on_ranks(_save, 2, case, tmp_path / "old")
    on_ranks(_go_on, 4, case, tmp_path / "old", tmp_path / "new", 1)
    old, new = (everything(step_folder(tmp_path / name, STOP))[0] for name in ("old", "new"))
    assert {"weights/fixed.weight", "weights/fixed.bias", "buffers/fixed.mean"} <= old.keys()
    second = load_file(share_path(step_folder(tmp_path / "old", STOP), 1))
    assert ("weights/fixed.weight" in second) == (stage == 3), "whole ones are in one file"
    assert old.keys() == new.keys()
    assert all(torch.equal(value, new[name]) for name, value in old.items())


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """The real training module with all its towers and heads, in small; averages, and the shipped ZeRO-3 options."""
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder)
    path = str(write_recipe(folder / "recipe.yaml", recipe(folder, folder / "run")))
    return Case(
        make_module=partial(module_on_one_thread, path),
        make_batch=partial(batch_of, path),
        num_steps=0,
        optimizer=replace(CASE.optimizer, ema_decay=0.9),
        ds_options=SHIPPED_FOR_CPU,
    )


@pytest.mark.parametrize("stage", [3, 1])
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_the_real_model_goes_on(tmp_path: Path, real: Case, stage: int, before: int, after: int) -> None:
    """Its states bit by bit, and the losses of the steps after them as those of the run that nobody stopped."""
    zero = real.ds_options["zero_optimization"]
    stage_1 = {"stage": 1, "reduce_bucket_size": zero["reduce_bucket_size"]}
    case = real if stage == 3 else replace(real, stage=1, ds_options={**real.ds_options, "zero_optimization": stage_1})
    straight = on_ranks(_save, before, case, tmp_path / "old")[0]
    resumed = on_ranks(_go_on, after, case, tmp_path / "old", tmp_path / "new", END - STOP)[0]
    (old, facts), (new, facts_again) = (everything(step_folder(tmp_path / name, STOP)) for name in ("old", "new"))
    assert facts == facts_again and facts.updates == facts.average_updates == STOP
    assert old.keys() == new.keys() and sum(name.startswith("average/") for name in old) > 50
    assert all(torch.equal(value, new[name]) for name, value in old.items())
    assert resumed == pytest.approx(straight, rel=1e-5)


def _pass_on(cases: Sequence[Case], run: Path) -> list[list[float]]:
    """Each engine loads what the one before saved (the first trains), saves, and does a step."""
    losses = []
    for number, case in enumerate(cases):
        engine = make_deepspeed(case)
        if number == 0:
            drive(engine, case, range(STOP))
        else:
            engine.load(step_folder(run / str(number - 1), STOP))
        save_checkpoint(engine, run / str(number), STOP, {}, keep=1)
        losses.append(drive(engine, case, range(STOP, STOP + 1)).losses)
    return losses


def test_the_real_model_goes_on_with_any_engine_stage_and_precision(tmp_path: Path, real: Case) -> None:
    """Its fp32 values are the same bits behind every one, the plain engine among them; a step differs by rounding."""
    kinds = [(3, "fp32"), (1, "bf16"), (0, "fp32"), (2, "bf16"), (3, "bf16"), (1, "fp32"), (2, "fp32")]
    cases = [replace(real, ds_options={}, stage=stage, precision=precision) for stage, precision in kinds]
    losses = on_ranks(_pass_on, 2, cases, tmp_path)[0]
    plain = make_plain(real)
    plain.load(step_folder(tmp_path / str(len(cases) - 1), STOP))
    save_checkpoint(plain, tmp_path / "plain", STOP, {}, keep=1)
    losses.append(drive(plain, real, range(STOP, STOP + 1)).losses)
    (first, facts), (last, facts_again) = (everything(step_folder(tmp_path / one, STOP)) for one in ("0", "plain"))
    assert replace(facts, counters={}) == replace(facts_again, counters={}) and facts.updates == STOP
    assert first.keys() == last.keys() and all(torch.equal(value, last[name]) for name, value in first.items())
    for (_, precision), found in zip([*kinds, (0, "fp32")], losses, strict=True):
        assert found == pytest.approx(losses[0], rel=1e-5 if precision == "fp32" else 5e-2)
