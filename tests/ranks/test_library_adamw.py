"""apex's and DeepSpeed's FusedAdam by name, as stand-ins, on two ranks: as the plain engine, with checkpoints."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from cclm.engine.options import OptimizerConfig
from cclm.ops import choice
from tests.ranks.harness import Case, drive, gradient_errors, make_deepspeed, on_ranks, train_plain
from tests.ranks.toy import joint_batch, make_toy
from tests.stand_in_apex import write_apex

pytestmark = pytest.mark.slow
STOP, END = 2, 4


class Counts:
    """Stands for DeepSpeed's FusedAdam: it counts in the state of the last tensor of a group."""

    @staticmethod
    def make(base: Any) -> Any:
        class FusedAdam(base):
            def step(self, closure: Any = None) -> None:
                for group in self.param_groups:
                    states = [self.state[one] for one in group["params"] if one.grad is not None]
                    if states:
                        states[-1]["step"] += 1
                        group["step"] = states[-1]["step"] - 1
                base.step(self)

        return FusedAdam


def _train(case: Case, kernel: str, packages: Path, folder: Path) -> tuple[Any, Any, set[int]]:
    """On a rank: straight through, and again from the checkpoint in the middle."""
    import deepspeed

    sys.path.insert(0, str(packages))
    fused = import_module("apex.optimizers").FusedAdam
    deepspeed.ops.adam.FusedAdam = Counts.make(fused)
    choice.why_not = lambda *arguments: ""  # this rank has no GPU
    engine = make_deepspeed(case, kernel=kernel)
    assert engine.kernel.chosen == kernel and fused in type(engine.state._optimizer).__mro__
    history = drive(engine, case, range(STOP))
    if engine.rank == 0:
        folder.mkdir()
    engine.collectives.barrier()
    engine.save(folder, {})
    rest = drive(engine, case, range(STOP, END))
    history.losses += rest.losses
    history.parameters = rest.parameters
    again = make_deepspeed(case, kernel=kernel)
    again.load(folder)
    counts = {int(state["step"]) for state in again.state.optimizer_states()}
    return history, drive(again, case, range(STOP, END)), counts


@pytest.mark.parametrize("kernel", ["apex", "deepspeed"])
@pytest.mark.parametrize(("stage", "options"), [(1, {}), (3, {"sub_group_size": 2000})])
def test_it_trains_as_torchs_and_is_resumed(kernel: str, stage: int, options: dict[str, Any], tmp_path: Path) -> None:
    """At stage 3 in several parts of a group, which are updated one by one."""
    case = Case(
        make_module=make_toy,
        make_batch=joint_batch,
        num_steps=END,
        stage=stage,
        zero_options=options,
        optimizer=OptimizerConfig(total_steps=10, learning_rate=2e-3, weight_decay=0.1, max_grad_norm=0.5),
    )
    packages = write_apex(tmp_path / "packages")
    ours, resumed, counts = on_ranks(_train, 2, case, kernel, packages, tmp_path / "saved")[0]
    reference = train_plain(case)
    assert ours.losses == pytest.approx(reference.losses, rel=1e-5)
    assert max(gradient_errors(ours.parameters, reference.parameters).values()) < 1e-4
    assert counts == {STOP}
    assert resumed.losses == ours.losses[STOP:]
    assert all(torch.equal(value, resumed.parameters[name]) for name, value in ours.parameters.items())
