"""Checkpoints of DeepSpeed ranks: bitwise resume, a rank killed while it writes, weights in one process."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
from torch import Tensor, nn

from cclm.checkpoint.load import load_checkpoint, load_full_state
from cclm.checkpoint.save import save_checkpoint
from cclm.distributed.collectives import collectives
from cclm.distributed.spawn import RanksFailedError
from cclm.errors import CheckpointError
from cclm.run.checkpoints import complete_checkpoints, newest_complete, partial_folder, step_folder
from tests.ranks.harness import Case, drive, make_deepspeed, make_plain, on_ranks
from tests.ranks.toy import make_toy_with_dropout, mixed_batch

pytestmark = pytest.mark.slow

CASE = Case(make_module=make_toy_with_dropout, make_batch=mixed_batch, num_steps=5, persistence_threshold=100)
STOP, END = 2, 5


def _snapshot(engine: Any) -> list[Tensor]:
    """This rank's fp32 weights and moments."""
    inner = engine._engine.optimizer
    if engine.stage == 0:
        weights, optimizer = list(engine._engine.module.parameters()), inner
    else:
        weights = inner.fp32_partitioned_groups_flat if engine.stage == 3 else inner.single_partition_of_fp32_groups
        optimizer = inner.optimizer
    moments = [value for state in optimizer.state.values() for value in state.values()]
    return [value.detach().clone() for value in [*weights, *moments]]


def _look(engine: Any, folder: Path) -> None:
    """Evaluate between two updates: the resumed run, which does not, must go on the same."""

    def ask(module: nn.Module) -> dict[str, Tensor]:
        assert not any(part.training for part in module.modules())
        return dict(module(mixed_batch(0, engine.rank, engine.world_size)).metrics)

    first, second = engine.evaluate(ask), engine.evaluate(ask)
    assert first and all(torch.equal(value, second[name]) for name, value in first.items()), "no dropout"
    assert engine._engine.module.training


def _train_and_save(case: Case, run: Path) -> tuple[Any, list[Tensor], dict[str, Tensor], dict[str, Tensor]]:
    engine = make_deepspeed(case)
    drive(engine, case, range(STOP))
    save_checkpoint(engine, run, STOP, {"seen": [1, 2]}, keep=2, witness=_look)
    saved = engine.full_parameters()
    history = drive(engine, case, range(STOP, END))
    return history.losses, _snapshot(engine), saved, history.parameters


def _resume(case: Case, run: Path) -> tuple[Any, list[Tensor], Any, Any]:
    engine = make_deepspeed(case)
    drive(engine, case, range(1))  # whatever it did before must not matter
    path = newest_complete(run)
    assert path is not None
    loaded = load_checkpoint(engine, path)
    history = drive(engine, case, range(loaded["step"], END))
    return history.losses, _snapshot(engine), loaded, history.parameters


@pytest.mark.parametrize(
    ("stage", "precision"),
    [
        (3, "fp32"),
        pytest.param(3, "bf16", marks=pytest.mark.slow),
        pytest.param(2, "bf16", marks=pytest.mark.slow),
        pytest.param(1, "fp32", marks=pytest.mark.slow),
        pytest.param(0, "fp32", marks=pytest.mark.slow),
    ],
)
def test_resume_is_bitwise_and_weights_load_in_one_process(tmp_path: Path, stage: int, precision: str) -> None:
    case = replace(CASE, stage=stage, precision=precision)
    straight = on_ranks(_train_and_save, 2, case, tmp_path)
    resumed = on_ranks(_resume, 2, case, tmp_path)
    for (losses, snapshot, _, parameters), (again, snapshot_again, loaded, parameters_again) in zip(
        straight, resumed, strict=True
    ):
        assert loaded == {"step": STOP, "state": {"seen": [1, 2]}}
        assert again == losses
        assert len(snapshot) > 2
        assert all(map(torch.equal, snapshot_again, snapshot))
        assert all(torch.equal(parameters_again[name], value) for name, value in parameters.items())
    saved = straight[0][2]
    state = load_full_state(step_folder(tmp_path, STOP))
    assert state.keys() == make_plain(case).module.state_dict().keys()
    assert all(state[name].dtype == torch.float32 and torch.equal(state[name], saved[name]) for name in saved)
    assert torch.equal(state["model.decoder.weight"], state["model.words.weight"])  # tied
    if stage > 0:  # the slow twin: DeepSpeed's own consolidation
        theirs = get_fp32_state_dict_from_zero_checkpoint(str(step_folder(tmp_path, STOP)), tag="deepspeed")
        assert theirs.keys() == state.keys() and all(torch.equal(theirs[name], state[name]) for name in state)


def _die_while_writing(case: Case, run: Path) -> None:
    engine = make_deepspeed(case)
    save_checkpoint(engine, run, 1, {}, keep=3)
    write = torch.save

    def write_half(value: object, file: Any, *arguments: Any, **options: Any) -> None:
        write(value, file, *arguments, **options)
        if "optim_states" in str(file):
            os.truncate(file, Path(file).stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    if engine.rank == 1:
        torch.save = write_half
    save_checkpoint(engine, run, 2, {}, keep=3)


def test_a_rank_killed_while_it_writes_leaves_the_older_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(RanksFailedError, match=r"rank 1 died ---\nended without a word, exit code -9"):
        on_ranks(_die_while_writing, 2, CASE, tmp_path)
    assert partial_folder(tmp_path, 2).exists()
    assert not step_folder(tmp_path, 2).exists()
    assert complete_checkpoints(tmp_path) == [step_folder(tmp_path, 1)]
    assert newest_complete(tmp_path) == step_folder(tmp_path, 1)
    assert on_ranks(_save_again, 2, CASE, tmp_path) == [1, 1]
    assert newest_complete(tmp_path) == step_folder(tmp_path, 2)
    assert not partial_folder(tmp_path, 2).exists()


def _fail_while_writing(case: Case, run: Path) -> None:
    engine = make_deepspeed(case)
    save_checkpoint(engine, run, 1, {}, keep=3)
    write = torch.save

    def fill_the_disk(value: object, file: Any, *arguments: Any, **options: Any) -> None:
        if "optim_states" in str(file):
            raise OSError("No space left on device")
        write(value, file, *arguments, **options)

    if engine.rank == 1:
        torch.save = fill_the_disk
    save_checkpoint(engine, run, 2, {}, keep=3)


def test_a_write_that_fails_on_one_rank_ends_every_process_in_seconds(tmp_path: Path) -> None:
    """Rank 0 waits in DeepSpeed's own barrier meanwhile: no rank may try to tell the others in a collective."""
    began = time.monotonic()
    with pytest.raises(
        RanksFailedError, match=r"rank 1 raised(.|\n)*CheckpointError: .*got rank 1: No space left on device"
    ) as caught:
        on_ranks(_fail_while_writing, 2, CASE, tmp_path)
    assert "rank 1 hung" not in str(caught.value)
    assert time.monotonic() - began < 45  # of which most is the start; a mismatched collective waits for 120
    assert newest_complete(tmp_path) == step_folder(tmp_path, 1)


def _save_again(case: Case, run: Path) -> int:
    engine = make_deepspeed(case)
    path = newest_complete(run)
    assert path is not None
    step = int(load_checkpoint(engine, path)["step"])
    save_checkpoint(engine, run, 2, {}, keep=3)
    return step


def _load_with_damage(case: Case, run: Path) -> str:
    """Only one rank's share of the hashes is wrong; every rank must raise, or the others would hang."""
    engine = make_deepspeed(case)
    path = save_checkpoint(engine, run, 1, {}, keep=1)
    if engine.rank == 0:
        file = sorted(path.glob("deepspeed/*rank_1*optim_states.pt"))[0]
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    collectives().barrier()
    try:
        load_checkpoint(engine, path)
    except CheckpointError as error:
        return str(error)
    return "loaded"


def test_damage_is_told_on_every_rank(tmp_path: Path) -> None:
    texts = on_ranks(_load_with_damage, 2, CASE, tmp_path)
    assert texts[0] == texts[1]
    assert "optim_states.pt has another sha256" in texts[0]
