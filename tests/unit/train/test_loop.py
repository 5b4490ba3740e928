"""The loop and the objects that it calls, on one process."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cclm.checkpoint import background
from cclm.checkpoint.background import BackgroundSaver
from cclm.checkpoint.options import CheckpointConfig
from cclm.config import RunConfig
from cclm.data.batch import Batch
from cclm.data.counts import Quarantine
from cclm.engine.plain import PlainEngine
from cclm.engine.protocol import Losses
from cclm.engine.stored_weights import load_full_state
from cclm.errors import Cause, CclmError, ConfigError, DataError
from cclm.run.background import Writer
from cclm.run.checkpoints import complete_checkpoints, newest_complete, read_marker, step_folder
from cclm.run.signals import StopRequest
from cclm.run.stop import StopKind, ask_to_stop, read_stopped
from cclm.track.metrics import read_metrics
from cclm.train import loop
from cclm.train.build import open_run
from cclm.train.loop import Run, train
from cclm.train.shared_evaluation import Evaluation, EvaluationStopped
from cclm.train.updates import OnTheWay
from tests.tiny_run import recipe, write_corpus
from tests.tiny_training import as_config, run_to_the_end

STEPS = 4


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"), broken={5, 6, 7})


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


@pytest.mark.slow
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


def checkpoints_of(config: RunConfig) -> list[int]:
    return [read_marker(path).step for path in complete_checkpoints(Path(config.run_folder))]


def with_checkpoints(config: RunConfig, **settings: Any) -> RunConfig:
    return replace(config, checkpoint=CheckpointConfig(**{"every_steps": 1000, "keep": 9, **settings}))


@pytest.mark.slow
def test_a_checkpoint_at_once_is_had_by_touching_a_file(config: RunConfig, tmp_path: Path) -> None:
    asked = Path(config.run_folder) / "save_now"

    def touching(run: Run) -> Run:
        def batches(from_step: int) -> Iterator[tuple[Batch, Batch]]:
            for batch, on_device in run.batches(from_step):
                if batch.step in (0, 3):  # before the first step there is nothing to save
                    asked.touch()
                yield batch, on_device

        return replace(run, batches=batches)

    with open_run(with_checkpoints(config), StopRequest()) as run:
        assert run is not None
        assert train(touching(run))
    assert checkpoints_of(config) == [3, STEPS]
    assert not asked.exists()
    whole = replace(with_checkpoints(config), run_folder=str(tmp_path / "whole"))
    assert run_to_the_end(whole)
    assert ledger_of(config) == ledger_of(whole)
    saved, undisturbed = (load_full_state(step_folder(Path(one.run_folder), STEPS)) for one in (config, whole))
    assert all(torch.equal(saved[name], undisturbed[name]) for name in undisturbed)


@pytest.mark.slow
def test_a_request_during_a_save_is_another_one(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, begin = Path(config.run_folder) / "save_now", BackgroundSaver.begin
    begun = list[int]()

    def asked_meanwhile(saver: BackgroundSaver, step: int, *arguments: Any) -> None:
        begin(saver, step, *arguments)
        begun.append(step)
        if step == 2:
            asked.touch()

    monkeypatch.setattr(BackgroundSaver, "begin", asked_meanwhile)
    assert run_to_the_end(with_checkpoints(config, every_steps=2))
    assert begun == [2] and checkpoints_of(config) == [2, STEPS], "nothing was done since"
    assert not asked.exists()
    begun.clear()
    longer = replace(config, optimizer=replace(config.optimizer, total_steps=8))
    with open_run(with_checkpoints(longer, every_steps=6), StopRequest()) as run:
        assert run is not None
        monkeypatch.setattr(BackgroundSaver, "begin", begin)
        update = run.engine.update

        def asked_in_a_step(step: int, *arguments: Any) -> Any:
            if step == 6:
                asked.touch()
            return update(step, *arguments)

        monkeypatch.setattr(run.engine, "update", asked_in_a_step)
        assert train(run)
    assert checkpoints_of(config) == [2, STEPS, 6, 7, 8] and not asked.exists()


class Quick(Writer):
    """Ready when it is looked at."""

    def is_ready(self) -> bool:
        while self._answer is None and not super().is_ready():
            time.sleep(0.001)
        return True


@pytest.mark.slow
def test_both_ways_of_writing_make_the_same_run_and_say_how_long_it_waited(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "Writer", Quick)
    late = list[float]()  # a busy disk: to sync takes longer than all else
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + sum(late), sleep=time.sleep)
    monkeypatch.setattr(loop, "time", clock)
    monkeypatch.setattr(Quarantine, "sync", lambda quarantine: late.append(100.0))
    found = {}
    for behind in (True, False):
        optimizer = replace(config.optimizer, total_steps=7)
        own = replace(config, run_folder=str(tmp_path / str(behind)), optimizer=optimizer)
        assert run_to_the_end(with_checkpoints(own, every_steps=2, background=behind))
        found[behind] = (read_metrics(Path(own.run_folder)), load_full_state(step_folder(Path(own.run_folder), 2)))
        assert checkpoints_of(own) == [2, 4, 6, 7]
    for lines, _ in found.values():
        waited = [values for _, values in lines if "speed/checkpoint_total_s" in values]
        assert waited and lines[0][1] not in waited
        assert all(0 < one["speed/checkpoint_blocking_s"] <= one["speed/checkpoint_total_s"] for one in waited)
    (first, state), (second, other) = found.values()
    assert [values["loss"] for _, values in first] == [values["loss"] for _, values in second]
    assert all(torch.equal(state[name], other[name]) for name in state)


class Busy(Writer):
    """At work until somebody waits for it."""

    is_waited_for = False

    def is_ready(self) -> bool:
        return self.is_waited_for and super().is_ready()

    def result(self) -> Any:
        self.is_waited_for = True
        try:
            return super().result()
        finally:
            self.is_waited_for = False


@pytest.mark.slow
def test_a_stop_and_an_error_wait_for_what_is_being_written(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "Writer", Busy)
    with open_run(with_checkpoints(config, every_steps=1), StopRequest()) as run:
        assert run is not None
        assert not train(stopping(run, 1))
    assert checkpoints_of(config) == [1]
    add = Quarantine.add

    def add_many(quarantine: Quarantine, step: int, bad_samples: Any) -> None:
        add(quarantine, step, bad_samples)
        quarantine.counts["decode", "images"] += 10_000 if step == 3 else 0

    monkeypatch.setattr(Quarantine, "add", add_many)
    with pytest.raises(DataError) as caught:
        run_to_the_end(with_checkpoints(config, every_steps=3))
    assert caught.value.reason == "too_many_bad_samples"
    assert checkpoints_of(config) == [1, 3]


@pytest.mark.slow
def test_checkpoints_by_the_clock(config: RunConfig) -> None:
    assert run_to_the_end(with_checkpoints(config, every_minutes=1e-9))
    assert checkpoints_of(config) == [1, 2, 3, STEPS]


@pytest.mark.slow
def test_each_kth_checkpoint_stays(config: RunConfig) -> None:
    assert run_to_the_end(with_checkpoints(config, every_steps=1, keep=1, keep_every=2))
    assert checkpoints_of(config) == [2, STEPS]


@pytest.mark.slow
def test_a_run_ends_by_itself_before_a_limit_that_nobody_tells(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", lambda: 0.0)  # somebody has set the clock back
    assert not run_to_the_end(with_checkpoints(config, stop_after_minutes=1e-9))
    stopped = read_stopped(Path(config.run_folder))
    assert stopped is not None and (stopped.step, stopped.kind) == (0, StopKind.SIGNAL)
    assert run_to_the_end(with_checkpoints(config, stop_after_minutes=1e9))


@pytest.mark.slow
def test_a_request_before_the_first_step_saves_nothing(config: RunConfig) -> None:
    with open_run(config, StopRequest()) as run:
        assert run is not None
        assert not train(stopping(run, 0))
    stopped = read_stopped(Path(config.run_folder))
    assert stopped is not None and stopped.step == 0
    assert newest_complete(Path(config.run_folder)) is None
    assert run_to_the_end(config)


@pytest.mark.slow
def test_a_request_in_the_last_step_changes_nothing(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    update = PlainEngine.update

    def asked(engine: PlainEngine, step: int, max_norm: float) -> Any:
        if step == STEPS - 1:
            ask_to_stop(Path(config.run_folder), "enough", StopKind.USER)
        return update(engine, step, max_norm)

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

    def skipped(engine: PlainEngine, step: int, max_norm: float) -> Any:
        return update(engine, step, -1.0 if step > 0 else max_norm)

    monkeypatch.setattr(PlainEngine, "update", skipped)
    with pytest.raises(CclmError) as caught:
        run_to_the_end(config)
    assert caught.value.cause is Cause.DIVERGED
    assert newest_complete(Path(config.run_folder)) is None
    assert not (Path(config.run_folder) / "done.json").exists()


def test_gradient_norms_are_looked_at_when_the_next_step_is_on_its_way(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host that reads at once waits until the device has done all that it was given; before it saves it does."""
    update, read, seen = PlainEngine.update, OnTheWay.read, list[str]()

    def noted_update(engine: PlainEngine, step: int, max_norm: float) -> Any:
        seen.append(f"update {step}")
        return update(engine, step, max_norm)

    def noted_read(norms: OnTheWay) -> list[float]:
        seen.append("read")
        return read(norms)

    monkeypatch.setattr(PlainEngine, "update", noted_update)
    monkeypatch.setattr(OnTheWay, "read", noted_read)
    assert run_to_the_end(replace(config, track=replace(config.track, every_steps=100)))
    assert seen == ["update 0", "update 1", "read", "update 2", "read", "update 3", "read", "read"]


@pytest.mark.slow
@pytest.mark.parametrize("every_steps", [1, 100])
def test_a_run_without_a_way_back_ends_at_the_step_that_uses_up_the_budget(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, every_steps: int
) -> None:
    update, steps = PlainEngine.update, list[int]()

    def skipped(engine: PlainEngine, step: int, max_norm: float) -> Any:
        steps.append(step)
        return update(engine, step, -1.0 if step >= 2 else max_norm)

    monkeypatch.setattr(PlainEngine, "update", skipped)
    long = replace(config, optimizer=replace(config.optimizer, total_steps=50))
    with pytest.raises(CclmError) as caught:
        run_to_the_end(replace(long, track=replace(config.track, every_steps=every_steps)))
    assert caught.value.cause is Cause.DIVERGED
    assert steps == list(range(2 + config.health.max_skipped + 1))
    assert newest_complete(Path(config.run_folder)) is None
    line = (Path(config.run_folder) / "log.jsonl").read_text(encoding="utf-8").splitlines()[-1]
    assert json.loads(line)["step"] == steps[-1], "the line that shows it is written"


def test_too_many_bad_samples_end_the_run(config: RunConfig) -> None:
    strict = replace(config, data=replace(config.data, bad_sample_limit=0.0))
    with pytest.raises(DataError) as caught:
        run_to_the_end(strict)
    assert caught.value.reason == "too_many_bad_samples"
    assert "image_broken in" in str(caught.value)


@pytest.mark.slow
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


class Asked(Evaluation):
    """Is asked to stop while it measures the first time."""

    def __init__(self) -> None:
        self.measured: list[int] = []
        self.resumed: list[int] = []
        self.was_asked = False

    def resume(self, step: int) -> None:
        self.resumed.append(step)

    def after(self, step: int) -> bool:
        if step == 3 and not self.was_asked:
            self.was_asked = True
            raise EvaluationStopped(step)
        self.measured.append(step)
        return False


@pytest.mark.slow
def test_a_stop_in_an_evaluation_saves_what_was_trained(config: RunConfig) -> None:
    evaluation = Asked()
    for is_done in (False, True):
        with open_run(config, StopRequest(), make_evaluation=lambda *_: evaluation) as run:
            assert run is not None
            assert train(run) is is_done
            assert not evaluation.is_asked()
    assert evaluation.measured == [1, 2, 4] and evaluation.resumed == [0, 3]
    assert len(ledger_of(config)) == STEPS


class Measured(Evaluation):
    """Measures after two steps."""

    def after(self, step: int) -> bool:
        return step == 2


@pytest.mark.slow
def test_a_checkpoint_of_an_evaluation_between_two_lines_can_be_gone_on_from(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(with_checkpoints(config), track=replace(config.track, every_steps=3))
    config = replace(config, checkpoint=replace(config.checkpoint, background=False))
    update = PlainEngine.update

    def die(engine: PlainEngine, step: int, max_norm: float) -> Any:
        if step == 3:
            raise KeyboardInterrupt
        return update(engine, step, max_norm)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(PlainEngine, "update", die)
        with open_run(config, StopRequest(), make_evaluation=lambda *_: Measured()) as run:
            assert run is not None
            train(run)
    assert checkpoints_of(config) == [2]
    assert run_to_the_end(config)
    whole = replace(config, run_folder=str(tmp_path / "whole"))
    assert run_to_the_end(whole)
    assert ledger_of(config) == ledger_of(whole)
    assert line_of(config, 2) == line_of(whole, 2), "the mean of steps 0 to 2, two of which came before the checkpoint"


def line_of(config: RunConfig, step: int) -> dict[str, Any]:
    """The line of a step, without what the clock decides."""
    lines = (Path(config.run_folder) / "log.jsonl").read_text(encoding="utf-8").splitlines()
    (found,) = [line for line in map(json.loads, lines) if line["step"] == step]
    return {name: value for name, value in found["values"].items() if not name.startswith("speed/")}


@pytest.mark.slow
def test_a_stop_in_the_middle_of_bad_steps_goes_on_from_the_checkpoint_before(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = PlainEngine.update

    def skipped(engine: PlainEngine, step: int, max_norm: float) -> Any:
        return update(engine, step, -1.0 if step == 2 else max_norm)

    with monkeypatch.context() as patch, open_run(with_checkpoints(config, every_steps=2), StopRequest()) as run:
        assert run is not None
        patch.setattr(PlainEngine, "update", skipped)
        assert not train(stopping(run, 3))
    stopped = read_stopped(Path(config.run_folder))
    assert stopped is not None and stopped.step == 2 and checkpoints_of(config) == [2]
    assert run_to_the_end(config)
    assert len(ledger_of(config)) == STEPS
