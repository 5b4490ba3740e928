"""One process, plain engine; the same on ZeRO-3 ranks is in tests/ranks/test_checkpoint.py."""

from __future__ import annotations

import errno
import multiprocessing
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cclm.checkpoint.collective import newest_sound, save_checkpoint
from cclm.data.batch import Batch
from cclm.engine.fragments import share_path
from cclm.engine.plain import PlainEngine
from cclm.engine.stored_weights import load_full_state
from cclm.errors import Cause, CheckpointError
from cclm.run import checkpoints
from cclm.run.checkpoints import newest_complete, partial_folder, step_folder
from tests.engine_values import full_parameters
from tests.ranks.harness import Case, drive, make_plain
from tests.ranks.toy import make_toy, make_toy_with_dropout, mixed_batch

CASE = Case(make_module=make_toy_with_dropout, make_batch=mixed_batch, num_steps=4)


pytestmark = pytest.mark.usefixtures("one_thread")


def _snapshot(engine: PlainEngine[Batch]) -> list[torch.Tensor]:
    states = engine.optimizer.state.values()
    return [*full_parameters(engine).values(), *(value for state in states for value in state.values())]


def test_resume_is_bitwise_with_dropout(tmp_path: Path) -> None:
    straight = make_plain(CASE)
    drive(straight, CASE, range(2))
    path = save_checkpoint(straight, tmp_path, 2, {"text_position": 7, "names": ["a"]}, keep=2)
    expected = drive(straight, CASE, range(2, 4))
    resumed = make_plain(CASE)
    drive(resumed, CASE, range(1))  # whatever it did before must not matter
    assert resumed.load(path) == {"step": 2, "state": {"text_position": 7, "names": ["a"]}}
    actual = drive(resumed, CASE, range(2, 4))
    assert (actual.losses, actual.grad_norms) == (expected.losses, expected.grad_norms)
    assert all(map(torch.equal, _snapshot(resumed), _snapshot(straight)))


def test_dropout_follows_seed_and_step() -> None:
    losses = [drive(make_plain(replace(CASE, seed=seed)), CASE, range(1)).losses for seed in (0, 0)]
    assert losses[0] == losses[1]
    engine, other = make_plain(CASE), make_plain(CASE)
    other._seed = 1
    batch = mixed_batch(0, 0, 1)
    first = float(engine.forward(batch).total.detach())
    assert float(engine.forward(batch).total.detach()) == first
    assert float(engine.forward(replace(batch, step=1)).total.detach()) != first
    assert float(other.forward(batch).total.detach()) != first


def test_full_state_has_every_name_of_the_module(tmp_path: Path) -> None:
    engine = make_plain(CASE)
    state = load_full_state(save_checkpoint(engine, tmp_path, 0, {}, keep=1))
    assert all(torch.equal(state[name], value) for name, value in engine.module.state_dict().items())
    assert state.keys() == engine.module.state_dict().keys()


def test_keep_and_second_save_of_a_step(tmp_path: Path) -> None:
    engine = make_plain(CASE)
    paths = [save_checkpoint(engine, tmp_path, step, {}, keep=2) for step in (1, 2, 3)]
    assert [path.exists() for path in paths] == [False, True, True]
    before = (paths[2] / "complete").stat().st_mtime_ns
    assert save_checkpoint(engine, tmp_path, 3, {"other": 1}, keep=2) == paths[2]
    assert (paths[2] / "complete").stat().st_mtime_ns == before


@pytest.mark.slow
def test_a_flipped_byte_is_found_before_anything_is_loaded(tmp_path: Path) -> None:
    engine = make_plain(CASE)
    path = save_checkpoint(engine, tmp_path, 1, {}, keep=1)
    file = share_path(path, 0)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    for load in (lambda: newest_sound(engine.collectives, tmp_path, pytest.fail), lambda: load_full_state(path)):
        with pytest.raises(CheckpointError, match=r"rank_00000\.safetensors has another sha256"):
            load()


def test_another_module_is_told_before_anything_is_loaded(tmp_path: Path) -> None:
    path = save_checkpoint(make_plain(replace(CASE, make_module=make_toy)), tmp_path, 1, {}, keep=1)
    with pytest.raises(CheckpointError, match=r"weights of model\.text_projection\.1\.weight, .*got nothing"):
        make_plain(CASE).load(path)


def test_a_failing_write_leaves_no_checkpoint_and_the_next_save_cleans_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_plain(CASE)

    def fail(folder: Path, state: object) -> None:
        (folder / "half").write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch, pytest.raises(CheckpointError, match="No space") as caught:
        patch.setattr(engine, "save", fail)
        save_checkpoint(engine, tmp_path, 1, {}, keep=1)
    assert caught.value.cause is Cause.DISK_FULL
    assert newest_complete(tmp_path) is None
    assert partial_folder(tmp_path, 1).exists()
    save_checkpoint(engine, tmp_path, 2, {}, keep=1)
    assert not partial_folder(tmp_path, 1).exists()


def _save_and_die(run: Path, where: str) -> None:
    """Second save; killed at the named function of cclm.run.checkpoints, before it does its work."""
    torch.set_num_threads(1)
    engine = make_plain(CASE)
    setattr(checkpoints, where, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    save_checkpoint(engine, run, 20, {}, keep=1)


@pytest.mark.parametrize("where", ["record_file", "write_marker", "publish", "prune"])
def test_killed_at_any_stage_there_is_a_whole_checkpoint(tmp_path: Path, where: str) -> None:
    engine = make_plain(CASE)
    save_checkpoint(engine, tmp_path, 10, {}, keep=1)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch"])
    process = context.Process(target=_save_and_die, args=(tmp_path, where))
    process.start()
    process.join(600)
    assert process.exitcode == -signal.SIGKILL
    step = 20 if where == "prune" else 10  # after publish the new one counts
    assert newest_complete(tmp_path) == step_folder(tmp_path, step)
    assert engine.load(step_folder(tmp_path, step))["step"] == step


@contextmanager
def _files_of_at_most(size_bytes: int) -> Iterator[None]:
    """The kernel refuses every longer file, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_disk_that_takes_no_more_is_told_in_a_sentence(tmp_path: Path) -> None:
    engine = make_plain(CASE)
    older = save_checkpoint(engine, tmp_path, 1, {}, keep=2)
    sentence = r"expected every rank to write its share of .*step_\S+partial, got rank 0: OSError: .*File too large"
    with _files_of_at_most(2000), pytest.raises(CheckpointError, match=sentence):
        save_checkpoint(engine, tmp_path, 2, {}, keep=2)
    assert newest_complete(tmp_path) == older
    assert save_checkpoint(engine, tmp_path, 2, {}, keep=2) == newest_complete(tmp_path)


def test_a_bug_in_the_engine_is_not_blamed_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_plain(CASE)
    monkeypatch.setattr(engine, "save", lambda folder, state: (_ for _ in ()).throw(RuntimeError("shape mismatch")))
    with pytest.raises(RuntimeError, match=r"^shape mismatch$"):
        save_checkpoint(engine, tmp_path, 1, {}, keep=2)
