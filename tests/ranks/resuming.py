"""On ranks: train recipes to the end by way of a checkpoint, or from that checkpoint on; what both found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import nn

from cclm.checkpoint.collective import save_checkpoint
from cclm.distributed.collectives import Collectives
from cclm.run.checkpoints import step_folder
from tests.ranks.harness import Case, History, drive, make_deepspeed, on_ranks
from tests.tiny_training import batch_of, module_of, read

STOP, END = 2, 4
Found = Sequence[Mapping[str, History]]
"""Of each rank, by the name of the case."""


def make_module(path: str, talk: Collectives) -> nn.Module:
    return module_of(read(path), talk)


def case_of(recipe: Path, stage: int = 3) -> Case:
    """A recipe under a stage of ZeRO."""
    path = str(recipe)
    return Case(make_module=partial(make_module, path), make_batch=partial(batch_of, path), num_steps=END, stage=stage)


def _train(cases: Mapping[str, Case], folder: Path, resumes: bool) -> dict[str, History]:
    found = {}
    for name, case in cases.items():
        engine = make_deepspeed(case)
        if resumes:
            engine.load(step_folder(folder / name, STOP))
        else:
            drive(engine, case, range(STOP))
            save_checkpoint(engine, folder / name, STOP, {}, keep=1)
        found[name] = drive(engine, case, range(STOP, END))
    return found


def assert_resumed_bit_by_bit(cases: Mapping[str, Case], folder: Path) -> Found:
    """Train on two ranks, once through and once from the checkpoint, which lies in FOLDER/NAME; return the first."""
    whole = on_ranks(_train, 2, cases, folder, False)
    resumed = on_ranks(_train, 2, cases, folder, True)
    for name in cases:
        for before, after in zip(whole, resumed, strict=True):
            assert (after[name].losses, after[name].grad_norms) == (before[name].losses, before[name].grad_norms), name
        ours, reference = resumed[0][name].parameters, whole[0][name].parameters
        assert ours.keys() == reference.keys()
        assert [one for one in ours if not torch.equal(ours[one], reference[one])] == [], name
    return whole
