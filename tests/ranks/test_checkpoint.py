"""Checkpoints of DeepSpeed ranks: bitwise resume, ranks that fail or are killed while they write, damaged files."""

from __future__ import annotations

import errno
import os
import pickle
import signal
from contextlib import closing
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cclm.checkpoint.background import BackgroundSaver
from cclm.checkpoint.collective import newest_sound, save_checkpoint
from cclm.distributed.agreement import Request, agree_on_step
from cclm.distributed.collectives import collectives
from cclm.engine import fragments
from cclm.engine.adamw import MOMENTS
from cclm.engine.fragments import WEIGHTS, share_path
from cclm.engine.stored_weights import load_full_state
from cclm.errors import Cause, CheckpointError
from cclm.run import causes
from cclm.run.checkpoints import complete_checkpoints, newest_complete, partial_folder, read_marker, step_folder
from tests.engine_values import full_parameters
from tests.ranks.harness import OPTIMIZER, Case, drive, make_deepspeed, make_plain, on_ranks
from tests.ranks.spawn import RanksFailedError
from tests.ranks.toy import make_toy_with_dropout, mixed_batch
from tests.unit.checkpoint.test_background import limit_files

pytestmark = pytest.mark.slow

CASE = Case(
    make_module=make_toy_with_dropout,
    make_batch=mixed_batch,
    num_steps=5,
    persistence_threshold=100,
    optimizer=replace(OPTIMIZER, ema_decay=0.6),
)
IN_BF16 = {"communication_data_type": "bf16", "data_types": {"grad_accum_dtype": "bf16"}}
STOP, END = 2, 5
AT_ONCE = "written in the step"


def _snapshot(engine: Any) -> list[Tensor]:
    """This rank's fp32 weights, moments with their count, and averages."""
    state = engine.state
    values = [one.values for kind in (WEIGHTS, *MOMENTS) for one in state.fragments(kind)]
    averages = [one.values for one in state.average.averages]
    counts = torch.tensor([float(one["step"]) for one in state.optimizer_states()])
    return [value.detach().clone() for value in [*values, *averages, counts]]


def _look(engine: Any, folder: Path) -> None:
    """Evaluate between two updates: the resumed run, which does not, must go on the same."""

    def probe(module: nn.Module) -> dict[str, Tensor]:
        assert not any(part.training for part in module.modules())
        return dict(module(mixed_batch(0, engine.rank, engine.world_size)).metrics)

    first, second = engine.evaluate(probe), engine.evaluate(probe)
    assert first and first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) for name, value in first.items()), "no dropout"
    assert engine.runner.module.training


def _train_and_save(case: Case, run: Path) -> tuple[Any, list[Tensor], dict[str, Tensor], dict[str, Tensor]]:
    engine = make_deepspeed(case)
    drive(engine, case, range(STOP))
    save_checkpoint(engine, run / AT_ONCE, STOP, {"seen": [1, 2]}, keep=2)
    with closing(BackgroundSaver(engine, run, keep=2, reference_outputs=_look)) as saver:
        saver.begin(STOP, {"seen": [1, 2]})
        saved = full_parameters(engine)
        history = drive(engine, case, range(STOP, END))
        saver.wait()
    return history.losses, _snapshot(engine), saved, history.parameters


def _resume(case: Case, run: Path) -> tuple[Any, list[Tensor], Any, Any]:
    engine = make_deepspeed(case)
    drive(engine, case, range(1))  # whatever it did before must not matter
    path = newest_complete(run)
    assert path is not None
    loaded = engine.load(path)
    history = drive(engine, case, range(loaded["step"], END))
    return history.losses, _snapshot(engine), loaded, history.parameters


@pytest.mark.parametrize(
    ("stage", "precision", "options"),
    [
        (3, "fp32", {}),
        (3, "bf16", {}),
        (2, "bf16", {}),
        (2, "fp32", {}),
        (1, "bf16", IN_BF16),
        (1, "bf16", {}),  # DeepSpeed has an optimizer of its own for this one
        (1, "fp32", {}),
        (0, "fp32", {}),
    ],
)
def test_resume_is_bitwise_and_weights_load_in_one_process(
    tmp_path: Path, stage: int, precision: str, options: dict[str, Any]
) -> None:
    case = replace(CASE, stage=stage, precision=precision, ds_options=options)
    straight = on_ranks(_train_and_save, 2, case, tmp_path)
    resumed = on_ranks(_resume, 2, case, tmp_path)
    for (losses, snapshot, _, parameters), (again, snapshot_again, loaded, parameters_again) in zip(
        straight, resumed, strict=True
    ):
        assert loaded == {"step": STOP, "state": {"seen": [1, 2]}}
        assert again == losses
        assert len(snapshot) == len(snapshot_again) > 20 and set(snapshot[-1].tolist()) == {END}
        assert all(map(torch.equal, snapshot_again, snapshot))
        assert parameters_again.keys() == parameters.keys()
        assert all(torch.equal(parameters_again[name], value) for name, value in parameters.items())
    at_once, behind = (step_folder(folder, STOP) for folder in (tmp_path / AT_ONCE, tmp_path))
    assert read_marker(at_once) == read_marker(behind), "in the step and in the background: the same bytes"
    assert [share_path(at_once, rank).read_bytes() == share_path(behind, rank).read_bytes() for rank in (0, 1)] == [
        True
    ] * 2
    saved = straight[0][2]  # the slow twin: whole parameters, gathered by DeepSpeed
    state = load_full_state(step_folder(tmp_path, STOP))
    assert state.keys() == make_plain(case).module.state_dict().keys()
    assert all(state[name].dtype == torch.float32 and torch.equal(state[name], saved[name]) for name in saved)
    assert torch.equal(state["model.decoder.weight"], state["model.words.weight"])  # tied


def _resume_offloaded(case: Case, run: Path) -> bool:
    engine = make_deepspeed(case)
    drive(engine, case, range(STOP))
    save_checkpoint(engine, run, STOP, {}, keep=2)
    expected = (drive(engine, case, range(STOP, END)).losses, _snapshot(engine))
    again = make_deepspeed(case)
    again.load(step_folder(run, STOP))
    losses, snapshot = drive(again, case, range(STOP, END)).losses, _snapshot(again)
    return losses == expected[0] and all(map(torch.equal, snapshot, expected[1]))


@pytest.mark.parametrize("stage", [2, 3])
def test_resume_is_bitwise_with_the_optimizer_offloaded(tmp_path: Path, stage: int) -> None:
    options = {"zero_options": {"offload_optimizer": {"device": "cpu"}}}
    case = replace(CASE, stage=stage, **options, ds_options={"zero_force_ds_cpu_optimizer": False})
    assert on_ranks(_resume_offloaded, 2, case, tmp_path) == [True, True]


def _spoil_second_write(case: Case, run: Path, error: OSError | None) -> tuple[Cause | None, str]:
    """On rank 1 the second checkpoint's file is cut in half; then the rank dies, or meets the error."""
    engine = make_deepspeed(case)
    save_checkpoint(engine, run, 1, {}, keep=3)
    write = fragments.write_tensors

    def write_half(path: Path, *arguments: Any) -> None:
        write(path, *arguments)
        os.truncate(path, path.stat().st_size // 2)
        if error is not None:
            raise error
        os.kill(os.getpid(), signal.SIGKILL)

    causes.WAITS_S = (0.0,)
    if engine.rank == 1:
        fragments.write_tensors = write_half
    try:
        save_checkpoint(engine, run, 2, {}, keep=3)
    except CheckpointError as caught:
        return caught.cause, str(caught)
    return None, ""


def test_a_rank_killed_while_it_writes_leaves_the_older_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(RanksFailedError, match=r"rank 1 died ---\nended without a word, exit code -9"):
        on_ranks(_spoil_second_write, 2, CASE, tmp_path, None)
    assert partial_folder(tmp_path, 2).exists()
    assert not step_folder(tmp_path, 2).exists()
    assert complete_checkpoints(tmp_path) == [step_folder(tmp_path, 1)]
    assert on_ranks(_save_again, 2, CASE, tmp_path) == [1, 1]
    assert newest_complete(tmp_path) == step_folder(tmp_path, 2)
    assert not partial_folder(tmp_path, 2).exists()


@pytest.mark.parametrize(
    ("number", "cause"),
    [(errno.ENOSPC, Cause.DISK_FULL), (errno.EACCES, Cause.USER_ERROR), (errno.EIO, Cause.TRANSIENT)],
)
def test_a_write_that_fails_on_one_rank_is_the_same_error_on_all(tmp_path: Path, number: int, cause: Cause) -> None:
    told = on_ranks(_spoil_second_write, 2, CASE, tmp_path, OSError(number, os.strerror(number)))
    assert [found for found, _ in told] == [cause, cause]
    assert all(f"got rank 1: {type(OSError(number, '')).__name__}: [Errno {number}]" in text for _, text in told)
    assert newest_complete(tmp_path) == step_folder(tmp_path, 1)


def _fail_behind(case: Case, run: Path) -> tuple[str, Cause | None]:
    """Rank 1's writer is refused long files; both ranks go on until they learn of it between two steps."""
    engine = make_deepspeed(case)
    with closing(BackgroundSaver(engine, run, keep=3)) as saver:
        saver.begin(1, {})
        saver.wait()
        if engine.rank == 1:
            limit_files(saver, 2000)
        saver.begin(2, {})
        for step in count():
            drive(engine, case, range(step, step + 1))
            own = Request.WRITING if saver.is_writing else Request.NOTHING
            if Request.WRITING not in agree_on_step(engine.collectives, step, {}, own):
                try:
                    saver.go_on()
                except CheckpointError as error:
                    return str(error), error.cause
    raise AssertionError("unreachable")


def test_a_writer_that_fails_on_one_rank_is_the_same_error_on_all(tmp_path: Path) -> None:
    (first, cause), second = on_ranks(_fail_behind, 2, CASE, tmp_path)
    assert (first, cause) == second and cause is Cause.DISK_FULL
    assert "got rank 1: OSError: [Errno 27]" in first
    assert complete_checkpoints(tmp_path) == [step_folder(tmp_path, 1)]


def _save_again(case: Case, run: Path) -> int:
    engine = make_deepspeed(case)
    path = newest_sound(engine.collectives, run, lambda line: None)
    assert path is not None
    step = int(engine.load(path)["step"])
    save_checkpoint(engine, run, 2, {}, keep=3)
    return step


def _resume_with_damage(case: Case, run: Path) -> tuple[str, list[str], int]:
    """Only one rank's share of the hashes shows the damage: what is taken, what is told, and the step."""
    engine = make_deepspeed(case)
    for step in (1, 2, 3):
        save_checkpoint(engine, run, step, {}, keep=3)
    if engine.rank == 0:
        file = share_path(step_folder(run, 3), 1)
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
        os.truncate(share_path(step_folder(run, 2), 0), 10)
    collectives().barrier()
    lines: list[str] = []
    path = newest_sound(engine.collectives, run, lines.append)
    assert path is not None
    return path.name, lines, int(engine.load(path)["step"])


def test_damaged_checkpoints_are_set_aside_and_all_ranks_take_the_older_one(tmp_path: Path) -> None:
    first, second = on_ranks(_resume_with_damage, 2, CASE, tmp_path)
    assert (first[0], first[2]) == (second[0], second[2]) == ("step_000000001", 1)
    assert second[1] == [], "one rank tells"
    assert len(first[1]) == 3 and "step_000000003.damaged: state/rank_00001.safetensors has another" in first[1][0]
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step_000000001", "step_000000002.damaged", "step_000000003.damaged"]


class Harmful:
    """What a prepared file could hold: it makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def _load_prepared(case: Case, checkpoint: Path) -> str:
    engine = make_deepspeed(case)
    try:
        engine.load(checkpoint)
    except CheckpointError as error:
        return str(error)
    return "loaded"


@pytest.mark.parametrize("world_size", [2, 1])
def test_no_code_in_a_checkpoint_is_run(tmp_path: Path, world_size: int) -> None:
    """A pickle in the place of a rank's file, and one where DeepSpeed would look: on as many ranks, and on others."""
    on_ranks(_save_once, 2, CASE, tmp_path)
    checkpoint = step_folder(tmp_path, 1)
    bait = pickle.dumps(Harmful(tmp_path / "made"))
    (checkpoint / "deepspeed").mkdir()
    for name in ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"):
        (checkpoint / "deepspeed" / name).write_bytes(bait)
    assert on_ranks(_load_prepared, world_size, CASE, checkpoint) == ["loaded"] * world_size
    share_path(checkpoint, 1).write_bytes(bait)
    told = on_ranks(_load_prepared, world_size, CASE, checkpoint)
    assert all("a readable file of a rank's state" in text for text in told)
    assert not (tmp_path / "made").exists()
    pickle.loads(bait)
    assert (tmp_path / "made").exists(), "whoever unpickles it runs it"


def _save_once(case: Case, run: Path) -> None:
    engine = make_deepspeed(case)
    save_checkpoint(engine, run, 1, {}, keep=1)


def _abandon_and_save(case: Case, run: Path) -> tuple[list[float], dict[str, Tensor]]:
    """Train to the end; a second engine stops in the middle of a step and saves; a third goes on from that."""
    whole = drive(make_deepspeed(case), case, range(END))
    stopped = make_deepspeed(case)
    drive(stopped, case, range(STOP))
    for _ in range(case.accumulation_steps - 1):
        batch = case.make_batch(STOP * case.accumulation_steps, stopped.rank, stopped.world_size)
        stopped.backward(stopped.forward(batch))
    stopped.abandon_step()
    save_checkpoint(stopped, run, STOP, {}, keep=1, reference_outputs=_look)
    engine = make_deepspeed(case)
    path = newest_complete(run)
    assert path is not None
    history = drive(engine, case, range(engine.load(path)["step"], END))
    assert history.losses == whole.losses[STOP * case.accumulation_steps :]
    same = [name for name, value in whole.parameters.items() if torch.equal(value, history.parameters[name])]
    assert len(same) == len(whole.parameters)
    return history.losses, history.parameters


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_step_that_is_abandoned_leaves_no_trace(stage: int, tmp_path: Path) -> None:
    results = on_ranks(_abandon_and_save, 2, replace(CASE, stage=stage, accumulation_steps=2), tmp_path)
    assert results[0][0] and results[0][1]
