"""Bad steps in a whole run: skipped, written down, rolled back from; on one process."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cclm.cli.__main__ import main as cclm
from cclm.config import HealthConfig, RunConfig
from cclm.data.batch import Batch
from cclm.engine.adamw import MOMENTS
from cclm.engine.fragments import WEIGHTS
from cclm.engine.plain import PlainEngine
from cclm.engine.protocol import Engine
from cclm.engine.stored_weights import load_full_state
from cclm.errors import Cause, CclmError
from cclm.run.checkpoints import (
    FileRecord,
    Marker,
    Rollback,
    complete_checkpoints,
    read_marker,
    read_rollbacks,
    remove_newer,
    step_folder,
    write_marker,
)
from cclm.run.signals import StopRequest
from cclm.train.build import open_run
from cclm.train.health import Health
from cclm.train.rollback import LeftOut, plan_rollback
from tests.fault import bad_at
from tests.tiny_run import recipe, write_corpus
from tests.tiny_training import as_config, run_to_the_end

STEPS = 10
ERROR = CclmError(expected="health", got="none", do="Rest.", cause=Cause.DIVERGED)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def config(corpus: Path, tmp_path: Path) -> RunConfig:
    settings = recipe(
        corpus,
        tmp_path / "run",
        engine="plain",
        optimizer={"total_steps": STEPS, "learning_rate": 0.002, "ema_decay": 0.9},
        track={"every_steps": 1, "tensorboard": False},
        checkpoint={"every_steps": 2, "keep": 9},
        health={"max_skipped": 1, "suspect_steps": 2, "max_rollbacks": 1},
    )
    return as_config(settings)


def run(config: RunConfig) -> None:
    assert run_to_the_end(config)


def lines_of(config: RunConfig, name: str) -> list[dict[str, Any]]:
    path = Path(config.run_folder) / name
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def values_of(config: RunConfig) -> list[dict[str, Any]]:
    return [
        {"step": line["step"], **{name: one for name, one in line["values"].items() if not name.startswith("speed/")}}
        for line in lines_of(config, "log.jsonl")
    ]


def state_at(config: RunConfig, step: int) -> dict[str, torch.Tensor]:
    return load_full_state(step_folder(Path(config.run_folder), step))


def held(engine: Engine[Any]) -> list[torch.Tensor]:
    """Copies of weights, moments, averages, and counts of updates."""
    state = engine.state
    assert state.average is not None
    values = [one.values for kind in (WEIGHTS, *MOMENTS) for one in state.fragments(kind)]
    values += [one.values for one in state.average.averages] + [torch.tensor(state.average.updates)]
    return [
        value.clone() for value in (*values, *(torch.tensor(float(one["step"])) for one in state.optimizer_states()))
    ]


def fail_at(monkeypatch: pytest.MonkeyPatch, is_bad: Callable[[int], bool], kind: str = "loss") -> None:
    monkeypatch.setattr(PlainEngine, "forward", bad_at(PlainEngine.forward, is_bad, kind))


@pytest.mark.parametrize(
    ("kind", "why"), [("loss", "loss_not_finite"), pytest.param("large", "loss_too_large", marks=pytest.mark.slow)]
)
def test_a_bad_step_leaves_no_trace_and_is_written_down(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, kind: str, why: str
) -> None:
    update, states = PlainEngine.update, dict[int, list[torch.Tensor]]()

    def watched(engine: PlainEngine[Batch], step: int, max_norm: float) -> Any:
        states[step] = held(engine)
        return update(engine, step, max_norm)

    monkeypatch.setattr(PlainEngine, "update", watched)
    fail_at(monkeypatch, lambda step: step == 4, kind)
    run(config)
    assert all(torch.equal(before, after) for before, after in zip(states[4], states[5], strict=True))
    assert not all(torch.equal(before, after) for before, after in zip(states[5], states[6], strict=True))
    assert [line["step"] for line in lines_of(config, "ledger.jsonl")] == list(range(STEPS))
    assert all(line["sums"] for line in lines_of(config, "ledger.jsonl")), "its samples were seen"
    assert [line["skipped_updates"] for line in values_of(config)] == [float(step == 4) for step in range(STEPS)]
    (bad,) = lines_of(config, "bad_steps.jsonl")
    assert (bad["step"], bad["why"], bad["losses"]) == (4, why, ["loss"])
    assert bad["num_gradients"] > 20 == len(bad["gradients"]), "one NaN is in all of them"
    (rank,) = bad["ranks"]
    images, pairs = rank["samples"]["image_text"], rank["samples"]["text_pair"]
    assert len(images) == len(pairs) == 16
    assert {(one["source"], *one["languages"]) for one in images} <= {("images", "en"), ("images", "de")}
    assert all(one["key"] and one["shard"].endswith(".tar") for one in images + pairs)
    assert not lines_of(config, "rollbacks.jsonl")


def test_the_samples_of_a_bad_step_are_those_that_it_saw(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_run(config, StopRequest()) as opened:
        assert opened is not None
        dataset = opened.recorder.bad_steps.dataset
        for step in range(3):
            shown = [one for one in dataset.samples_of(step) if one.view == "image_text"]
            counts = dict(dataset[step].samples_seen)
            assert counts["image_text/images"] == len(shown) == 16
            german = sum("de" in one.languages for one in shown)
            assert counts.get("image_text/images/de", 0) == german


@pytest.mark.slow
def test_a_spike_is_skipped(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cclm.train.health.FEWEST_NORMS", 3)
    config = replace(config, health=HealthConfig(max_norm_ratio=1.0001))
    run(config)
    found = lines_of(config, "bad_steps.jsonl")
    assert found and {line["why"] for line in found} == {"gradient_too_large"}
    norms = {line["step"]: line["grad_norm"] for line in values_of(config)}
    for line in found:
        assert line["values"]["grad_norm"] == norms[line["step"]] > 0, "the norm itself is told"
        assert line["losses"] == line["gradients"] == []
    assert not any(line["step"] < 3 + 2 - 1 for line in found)


@pytest.mark.slow
def test_too_many_bad_steps_roll_back_and_go_on_without_their_batches(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Bad are 5 and 6; suspected 3 and 4; so the way back is to 2, and 3 to 6 are left out."""
    fail_at(monkeypatch, lambda step: step in (5, 6), "gradient")
    run(config)
    folder = Path(config.run_folder)
    assert read_rollbacks(folder) == [Rollback(step=7, to=2, first=3, stop=7)]
    assert [line["step"] for line in lines_of(config, "bad_steps.jsonl")] == [5, 6], "the evidence stays"
    assert {line["why"] for line in lines_of(config, "bad_steps.jsonl")} == {"gradient_not_finite"}
    ledger = lines_of(config, "ledger.jsonl")
    assert [line["step"] for line in ledger] == list(range(STEPS))
    assert [line["step"] for line in ledger if not line["sums"]] == [3, 4, 5, 6]
    assert [line["step"] for line in values_of(config)] == [0, 1, 2, 7, 8, 9]
    last = values_of(config)[-1]
    assert last["seen/image_text/images"] == 6 * 16 and last["skipped_updates"] == 0.0
    assert cclm(["verify-ledger", str(folder)]) == 0
    assert json.loads((folder / "done.json").read_text())["step"] == STEPS

    monkeypatch.undo()  # nothing is bad any more: what the run does now follows from its notes alone
    whole = state_at(config, STEPS)
    assert len(remove_newer(folder, 2)) == 4
    (folder / "done.json").unlink()
    run(config)
    resumed = state_at(config, STEPS)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert lines_of(config, "ledger.jsonl") == ledger


@pytest.mark.slow
def test_after_enough_rollbacks_the_run_ends(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_at(monkeypatch, lambda step: step in (4, 5, 8, 9))
    with pytest.raises(CclmError) as caught:
        run(config)
    assert caught.value.cause is Cause.DIVERGED and "after 1 rollback" in caught.value.got
    assert [one.to for one in read_rollbacks(Path(config.run_folder))] == [2]
    assert read_marker(complete_checkpoints(Path(config.run_folder))[-1]).step == 8
    monkeypatch.undo()
    run(config)  # the same command goes on
    assert lines_of(config, "ledger.jsonl")[3]["sums"] == {}


@pytest.mark.slow
def test_without_a_checkpoint_there_is_no_way_back(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_at(monkeypatch, lambda step: step < 2)
    with pytest.raises(CclmError) as caught:
        run(config)
    assert caught.value.cause is Cause.DIVERGED and not lines_of(config, "rollbacks.jsonl")
    assert lines_of(config, "bad_steps.jsonl")
    monkeypatch.undo()
    run(config)
    assert not lines_of(config, "bad_steps.jsonl"), "it began anew"


def marked(folder: Path, *steps: int) -> Path:
    for step in steps:
        step_folder(folder, step).mkdir(parents=True)
        write_marker(step_folder(folder, step), Marker(step=step, world_size=1, files=dict[str, FileRecord]()))
    return folder


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ((10, 20, 30), Rollback(step=36, to=20, first=25, stop=36)),  # 30 is suspected
        ((10, 25, 30), Rollback(step=36, to=25, first=25, stop=36)),
        (
            (30, 34),
            Rollback(step=36, to=30, first=30, stop=36),
        ),  # none is healthy: the newest that no bad step is before
        ((33,), None),
        ((), None),
    ],
)
def test_the_way_back(tmp_path: Path, steps: tuple[int, ...], expected: Rollback | None) -> None:
    """Bad are steps 32, 33 and 35, and seven steps are suspected."""
    health = Health(run_folder=tmp_path, config=HealthConfig(suspect_steps=7))
    for step in range(20, 36):
        health.add(step, [step not in (32, 33, 35)])
    health.bad_steps = [32, 33, 35]
    if expected is None:
        with pytest.raises(CclmError):
            plan_rollback(marked(tmp_path, *steps), health, 0, ERROR)
    else:
        assert plan_rollback(marked(tmp_path, *steps), health, 0, ERROR) == expected


def test_steps_that_are_left_out() -> None:
    left_out = LeftOut([Rollback(step=7, to=2, first=3, stop=7), Rollback(step=20, to=18, first=18, stop=20)])
    assert [step for step in range(25) if step in left_out] == [3, 4, 5, 6, 18, 19]
    assert str(left_out) == "3 to 6, 18 to 19" and left_out and not LeftOut()


@pytest.mark.slow
@pytest.mark.parametrize(("bad", "left"), [((), [4, 6]), ((5,), [2, 4, 6])])
def test_of_the_newest_only_healthy_ones_count(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, bad: tuple[int, ...], left: list[int]
) -> None:
    monkeypatch.setattr(PlainEngine, "forward", bad_at(PlainEngine.forward, lambda step: step in bad))
    short = replace(config.optimizer, total_steps=6)
    run(replace(config, optimizer=short, checkpoint=replace(config.checkpoint, keep=2)))
    assert [read_marker(path).step for path in complete_checkpoints(Path(config.run_folder))] == left
