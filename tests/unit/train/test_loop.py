"""The loop and the objects that it calls, on one process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cclm.config import RunConfig
from cclm.data.batch import Batch
from cclm.engine.plain import PlainEngine
from cclm.engine.protocol import Losses
from cclm.engine.stored_weights import load_full_state
from cclm.errors import Cause, CclmError, ConfigError, DataError
from cclm.run.checkpoints import newest_complete
from cclm.run.signals import StopRequest
from cclm.run.stop import StopKind, ask_to_stop, read_stopped
from cclm.train.loop import Run, train
from pretrain.build import open_run
from tests.tiny_run import recipe, write_corpus
from tests.tiny_training import as_config

STEPS = 4


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"), broken={5, 6, 7})


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def config(corpus: Path, tmp_path: Path) -> RunConfig:
    settings = recipe(
        corpus,
        tmp_path / "run",
        engine="plain",
        optimizer={"total_steps": STEPS, "learning_rate": 0.002},
        track={"every_steps": 1, "tensorboard": False},
    )
    settings["data"]["bad_sample_limit"] = 0.5
    return as_config(settings)


def run_to_the_end(config: RunConfig) -> bool:
    with open_run(config, StopRequest()) as run:
        assert run is not None
        return train(run)


def ledger_of(config: RunConfig) -> list[dict[str, Any]]:
    lines = (Path(config.run_folder) / "ledger.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_a_run_is_done_once(config: RunConfig) -> None:
    assert run_to_the_end(config)
    with open_run(config, StopRequest()) as run:
        assert run is None
    folder = Path(config.run_folder)
    assert json.loads((folder / "done.json").read_text())["step"] == STEPS
    checkpoint = newest_complete(folder)
    assert checkpoint is not None and checkpoint.name.endswith(str(STEPS))


def test_a_run_reads_from_any_step_on(config: RunConfig) -> None:
    with open_run(config, StopRequest()) as run:
        assert run is not None
        for first in (2, 0, 3):
            batch, on_device = next(run.batches(first))
            assert batch.step == on_device.step == first


def test_a_batch_of_another_step_is_no_batch(config: RunConfig) -> None:
    with open_run(config, StopRequest()) as run:
        assert run is not None
        batches = run.batches
        with pytest.raises(AssertionError, match="the loader gave step 1 at step 0"):
            train(replace(run, batches=lambda from_step: batches(from_step + 1)))


def stopping(run: Run, after: int) -> Run:
    """Asked to stop while it waits for the batch that comes after so many steps."""

    def batches(from_step: int) -> Iterator[tuple[Batch, Batch]]:
        for batch, on_device in run.batches(from_step):
            if batch.step == after:
                ask_to_stop(run.folder, "enough", StopKind.USER)
            yield batch, on_device

    return replace(run, batches=batches)


def test_a_run_that_is_asked_to_stop_saves_and_goes_on(config: RunConfig, tmp_path: Path) -> None:
    with open_run(config, StopRequest()) as run:
        assert run is not None
        assert not train(stopping(run, 2))
    folder = Path(config.run_folder)
    stopped = read_stopped(folder)
    assert stopped is not None and (stopped.step, stopped.reason) == (2, "enough")
    assert not (folder / "done.json").exists() and not (folder / "stop").exists()
    assert json.loads((folder / "status/rank_0.json").read_text())["phase"] == "stopped"
    assert len(ledger_of(config)) == 2
    assert run_to_the_end(config)
    whole = replace(config, run_folder=str(tmp_path / "whole"))
    assert run_to_the_end(whole)
    assert ledger_of(config) == ledger_of(whole)


def test_a_request_before_the_first_step_saves_nothing(config: RunConfig) -> None:
    with open_run(config, StopRequest()) as run:
        assert run is not None
        assert not train(stopping(run, 0))
    stopped = read_stopped(Path(config.run_folder))
    assert stopped is not None and stopped.step == 0
    assert newest_complete(Path(config.run_folder)) is None
    assert run_to_the_end(config)


def test_a_request_in_the_last_step_changes_nothing(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    update = PlainEngine.update

    def asked(engine: PlainEngine, step: int) -> Any:
        if step == STEPS - 1:
            ask_to_stop(Path(config.run_folder), "enough", StopKind.USER)
        return update(engine, step)

    monkeypatch.setattr(PlainEngine, "update", asked)
    assert run_to_the_end(config)
    assert (Path(config.run_folder) / "done.json").exists()


@pytest.mark.slow
def test_a_request_between_micro_batches_abandons_the_step(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its half gradients leave no trace: the run that goes on is the run that nobody stopped."""
    config = replace(config, data=replace(config.data, micro_batches=2))
    backward, calls = PlainEngine.backward, list[int]()

    def asked(engine: PlainEngine[Batch], losses: Losses) -> None:
        backward(engine, losses)
        calls.append(1)
        if len(calls) == 5:  # the first half of step 2
            ask_to_stop(Path(config.run_folder), "enough", StopKind.USER)

    monkeypatch.setattr(PlainEngine, "backward", asked)
    assert not run_to_the_end(config)
    stopped = read_stopped(Path(config.run_folder))
    assert stopped is not None and stopped.step == 2 and len(calls) == 5
    assert run_to_the_end(config)
    whole = replace(config, run_folder=str(tmp_path / "whole"))
    assert run_to_the_end(whole)
    assert ledger_of(config) == ledger_of(whole)
    states = [load_full_state(Path(one.run_folder) / f"checkpoints/step_{STEPS:09d}") for one in (config, whole)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[1])


def test_updates_that_are_all_skipped_end_the_run_before_it_saves(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = PlainEngine.update

    def skipped(engine: PlainEngine, step: int) -> Any:
        found = update(engine, step)
        return replace(found, grad_norm=float("inf")) if step > 0 else found

    monkeypatch.setattr(PlainEngine, "update", skipped)
    with pytest.raises(CclmError) as caught:
        run_to_the_end(config)
    assert caught.value.cause is Cause.DIVERGED
    assert newest_complete(Path(config.run_folder)) is None
    assert not (Path(config.run_folder) / "done.json").exists()


def test_a_loss_that_is_not_finite_ends_the_run_with_its_name(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = PlainEngine.forward

    def broken(engine: PlainEngine, batch: Batch) -> Any:
        losses = forward(engine, batch)
        if batch.step < 2:
            return losses
        nan = torch.tensor(float("nan"))
        return losses._replace(metrics={**losses.metrics, "loss": nan, "text_pair/ttc": nan})

    monkeypatch.setattr(PlainEngine, "forward", broken)
    with pytest.raises(CclmError) as caught:
        run_to_the_end(config)
    assert caught.value.cause is Cause.DIVERGED
    assert (caught.value.where, caught.value.got) == ("step 2", "loss nan, text_pair/ttc nan")
    lines = (Path(config.run_folder) / "log.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 1, 2], "the line that shows it is written"


def test_too_many_bad_samples_end_the_run(config: RunConfig) -> None:
    strict = replace(config, data=replace(config.data, bad_sample_limit=0.0))
    with pytest.raises(DataError) as caught:
        run_to_the_end(strict)
    assert caught.value.reason == "too_many_bad_samples"
    assert "image_broken in" in str(caught.value)


def test_the_order_of_views_in_a_configuration_moves_no_sample(config: RunConfig, tmp_path: Path) -> None:
    views = {name: config.views[name] for name in reversed(list(config.views))}
    turned = replace(config, run_folder=str(tmp_path / "turned"), views=views)
    assert run_to_the_end(config) and run_to_the_end(turned)
    assert ledger_of(turned) == ledger_of(config)


def test_settings_that_cannot_be_are_refused_at_once_and_together(config: RunConfig) -> None:
    images = replace(config.views["image_text"], negative_group=16)
    wrong = replace(config, views={**config.views, "image_text": images}, data=replace(config.data, micro_batches=3))
    with pytest.raises(ConfigError) as caught, open_run(wrong, StopRequest()):
        pass
    assert len(caught.value.problems) == 2
    assert not Path(config.run_folder).exists()
    unknown = replace(config, views={"texts": images})
    with pytest.raises(ConfigError, match="got texts"), open_run(unknown, StopRequest()):
        pass
