"""What a message tells the user to do is done here, once each, in the run folder that it is about: it works."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cclm.config import HealthConfig, RunConfig, validate_ranks
from cclm.data.batch import Batch
from cclm.engine.plain import PlainEngine
from cclm.errors import Cause, CclmError, CheckpointError, ConfigError, DataError
from cclm.run.checkpoints import complete_checkpoints
from cclm.run.status import DoneMarker
from cclm.shardfile.verify import find_faults
from tests.tiny_run import recipe, write_corpus
from tests.tiny_training import as_config, run_to_the_end

pytestmark = pytest.mark.slow
STEPS = 8


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    """A run of eight steps with a checkpoint after each second one."""
    settings = recipe(
        write_corpus(tmp_path / "corpus"),
        tmp_path / "run",
        engine="plain",
        optimizer={"total_steps": STEPS, "learning_rate": 0.002},
        track={"every_steps": 1, "tensorboard": False},
        checkpoint={"every_steps": 2, "keep": 2, "background": False},
    )
    return as_config(settings)


def run(config: RunConfig) -> None:
    """Train to the end."""
    assert run_to_the_end(config)
    assert DoneMarker(Path(config.run_folder)).read() is not None


def saved(config: RunConfig) -> list[int]:
    return [int(path.name.rpartition("_")[2]) for path in complete_checkpoints(Path(config.run_folder))]


def until(config: RunConfig, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train a while: the process then dies."""
    forward = PlainEngine.forward

    def die(engine: PlainEngine[Batch], batch: Batch) -> Any:
        if batch.step == step:
            raise ConnectionError("the node is lost")
        return forward(engine, batch)

    with monkeypatch.context() as patch, pytest.raises(ConnectionError):
        patch.setattr(PlainEngine, "forward", die)
        run(config)


def test_after_too_many_bad_samples_copy_the_damaged_shards_or_raise_the_limit(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    until(config, 5, monkeypatch)
    folder = tmp_path / "corpus" / "images"
    shutil.copytree(folder, tmp_path / "copy")
    for tar in folder.glob("*.tar"):
        tar.write_bytes(tar.read_bytes()[: tar.stat().st_size // 2])
    with pytest.raises(DataError) as caught:
        run(config)
    assert caught.value.reason == "too_many_bad_samples"
    assert "shards verify" in caught.value.do and "--data.bad_sample_limit" in caught.value.do
    assert saved(config)[-1] == 4

    lenient = replace(config, data=replace(config.data, bad_sample_limit=1.0))
    until(lenient, 7, monkeypatch)
    assert saved(config)[-1] == 6
    damaged = {re.split(r"[,:]", fault.where)[0] for fault in find_faults(folder)}
    assert damaged
    for path in damaged:
        shutil.copy(tmp_path / "copy" / Path(path).name, path)
    assert not list(find_faults(folder))
    run(lenient)


def test_after_a_broken_neighbourhood_copy_the_damaged_shards(config: RunConfig, tmp_path: Path) -> None:
    folder = tmp_path / "corpus" / "images"
    shutil.copytree(folder, tmp_path / "copy")
    for tar in folder.glob("*.tar"):
        tar.write_bytes(bytes(tar.stat().st_size))
    with pytest.raises(DataError) as caught:
        run(config)
    assert caught.value.reason == "neighbourhood_broken" and "copy these shards again" in caught.value.do
    shutil.copytree(tmp_path / "copy", folder, dirs_exist_ok=True)
    run(config)


def test_after_divergence_remove_the_newest_checkpoint(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    update = PlainEngine.update

    def diverge(engine: PlainEngine[Batch], step: int, max_norm: float) -> Any:
        return update(engine, step, -1.0 if step >= 6 else max_norm)

    config = replace(config, health=HealthConfig(max_rollbacks=0))
    with monkeypatch.context() as patch, pytest.raises(CclmError) as caught:
        patch.setattr(PlainEngine, "update", diverge)
        run(config)
    assert caught.value.cause is Cause.DIVERGED and "remove this checkpoint" in caught.value.do
    assert saved(config) == [4, 6]
    shutil.rmtree(Path(config.run_folder) / "checkpoints/step_000000006")
    run(config)


@pytest.mark.parametrize(
    "changes",
    [{"micro_batches": 2}, {"num_workers": 1}, {"batch_timeout_s": 60.0, "num_workers": 1}, {"bad_sample_limit": 0.5}],
)
def test_what_messages_say_may_change_may_change(
    config: RunConfig, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out of memory, a worker that dies, one that hangs: each names settings of a run that goes on."""
    until(config, 5, monkeypatch)
    run(replace(config, data=replace(config.data, **changes)))


def test_a_run_longer_than_its_sources_is_shortened_or_they_last_longer(config: RunConfig, tmp_path: Path) -> None:
    images = config.views["image_text"]
    short = {name: replace(source, max_epochs=1) for name, source in images.sources.items()}
    limited = replace(config, views={**config.views, "image_text": replace(images, sources=short)})
    with pytest.raises(ConfigError, match="used up after 6") as caught:
        run(limited)
    assert "optimizer.total_steps" in caught.value.do and "max_epochs" in caught.value.do
    run(replace(limited, optimizer=replace(config.optimizer, total_steps=6)))
    run(replace(config, run_folder=str(tmp_path / "other")))


def test_a_ledger_of_another_folder_is_put_right_or_a_new_run_started(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    until(config, 5, monkeypatch)
    ledger = Path(config.run_folder) / "ledger.jsonl"
    whole = ledger.read_bytes()
    ledger.unlink()
    with pytest.raises(CheckpointError, match="ledger that ends with step 3") as caught:
        run(config)
    assert "start a new run" in caught.value.do
    run(replace(config, run_folder=str(tmp_path / "new")))
    ledger.write_bytes(whole)
    run(config)


def test_a_damaged_marker_of_the_end_is_removed(config: RunConfig) -> None:
    run(config)
    done = Path(config.run_folder) / "done.json"
    done.write_text("{")
    with pytest.raises(CclmError, match="Remove the file"):
        run(config)
    done.unlink()
    run(config)


def test_a_folder_of_another_run_is_left_alone_and_another_one_taken(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    until(config, 5, monkeypatch)
    other = replace(config, seed=config.seed + 1)
    with pytest.raises(ConfigError, match="seed") as caught:
        run(other)
    assert "run_folder" in caught.value.do and "old values" in caught.value.do
    run(replace(other, run_folder=str(tmp_path / "new")))
    run(config)


def test_the_plain_engine_is_for_one_process(config: RunConfig) -> None:
    with pytest.raises(ConfigError) as caught:
        validate_ranks(config, 2)
    assert caught.value.problems[0].endswith("use engine: deepspeed, or no launcher")
    run(config)
