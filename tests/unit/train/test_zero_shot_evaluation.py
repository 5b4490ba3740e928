"""What a run measures while it pre-trains equals what `cclm evaluate` measures of its checkpoints."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cclm.errors import ConfigError
from cclm.run.checkpoints import Pins, complete_checkpoints, pinned, read_pins, step_folder
from cclm.run.signals import StopRequest
from cclm.run.stop import StopKind, ask_to_stop
from cclm.track.metrics import read_metrics
from cclm.train.build import open_run
from cclm.train.retriever import Retriever
from tests.tiny_retrieval import write_uneven_set
from tests.tiny_run import recipe, write_corpus
from tests.tiny_training import as_config, run_to_the_end
from tests.zero_shot import evaluated

STEPS = 6
TOP_K = 4


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_corpus(tmp_path_factory.mktemp("corpus"))
    write_uneven_set(folder / "uneven")
    return folder


def settings_of(corpus: Path, run: Path, **evaluation: Any) -> dict[str, Any]:
    sets = {"images": str(corpus / "images"), "uneven": str(corpus / "uneven")}
    settings = recipe(
        corpus,
        run,
        engine="plain",
        optimizer={"total_steps": STEPS, "learning_rate": 0.01},
        track={"every_steps": 4, "tensorboard": False},
        checkpoint={"every_steps": 100, "keep": 9},
        evaluation={"every_steps": 2, "sets": sets, "batch_size": 5, **evaluation},
    )
    settings["model"]["text"]["dropout"] = 0.1
    return settings


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]


def log_of(folder: Path) -> list[Any]:
    """The log without what the clock decides."""
    return [
        (step, {name: value for name, value in values.items() if not name.startswith("speed/")})
        for step, values in read_metrics(folder)
    ]


@pytest.mark.slow
def test_numbers_are_those_of_the_checkpoint_and_choose_the_best(corpus: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    config = as_config(settings_of(corpus, folder, rerank_top_k=TOP_K))
    assert run_to_the_end(config)
    lines = lines_of(folder)
    assert [line["updates"] for line in lines] == [2, 4, 6]
    for line in lines:
        expected = evaluated(config, step_folder(folder, line["updates"]))
        assert line["numbers"] == pytest.approx(expected, abs=1e-6)
        means = [line["numbers"][f"{name}/all/mean_recall"] for name in ("images", "uneven")]
        assert line["value"] == pytest.approx(sum(means) / 2)
    assert len({json.dumps(line["numbers"]) for line in lines}) > 1, "training changes something"
    logged = {step + 1: values for step, values in read_metrics(folder) if "evaluation" in values}
    assert {step: values["evaluation"] for step, values in logged.items()} == {
        line["updates"]: line["value"] for line in lines
    }
    assert logged[4]["evaluation/uneven/de/t2i_r1"] == lines[1]["numbers"]["uneven/de/t2i_r1"]
    best = max(lines, key=lambda line: float(line["value"]))["updates"]
    assert pinned(folder) == step_folder(folder, best)


@pytest.mark.slow
def test_it_disturbs_nothing(corpus: Path, tmp_path: Path) -> None:
    config = as_config(settings_of(corpus, tmp_path / "evaluated"))
    alone = replace(config, run_folder=str(tmp_path / "alone"), evaluation=None)
    unsaved = replace(config, run_folder=str(tmp_path / "unsaved"), checkpoint=replace(config.checkpoint, keep_best=0))
    for one in (config, alone, unsaved):
        assert run_to_the_end(one)
    assert [path.name for path in complete_checkpoints(tmp_path / "unsaved")] == ["step_000000006"]
    ledgers = {(tmp_path / name / "ledger.jsonl").read_text() for name in ("evaluated", "alone", "unsaved")}
    assert len(ledgers) == 1
    ends = [log_of(tmp_path / name) for name in ("evaluated", "alone", "unsaved")]
    losses = [[values["loss"] for step, values in log if step in (3, 5) and "loss" in values] for log in ends]
    assert losses[0] == losses[1] == losses[2]


@pytest.mark.slow
def test_stopped_in_an_evaluation_it_makes_up_for_it(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = as_config(settings_of(corpus, tmp_path / "whole"))
    assert run_to_the_end(config)
    stopped = replace(config, run_folder=str(tmp_path / "stopped"))
    before, calls = Retriever._encode_texts, list[int]()

    def asking(self: Retriever, texts: Any, keeps: bool) -> Any:
        calls.append(1)
        if self.work._step == 4 and len(calls) > 10:
            ask_to_stop(tmp_path / "stopped", "test", StopKind.USER)
        return before(self, texts, keeps)

    with monkeypatch.context() as patch:
        patch.setattr(Retriever, "_encode_texts", asking)
        assert not run_to_the_end(stopped)
    assert [line["updates"] for line in lines_of(tmp_path / "stopped")] == [2]
    assert run_to_the_end(stopped)
    assert lines_of(tmp_path / "stopped") == lines_of(tmp_path / "whole")
    assert log_of(tmp_path / "stopped") == log_of(tmp_path / "whole")


@pytest.mark.slow
def test_groups_and_the_measure_are_settings(corpus: Path, tmp_path: Path) -> None:
    groups = {"few": ["de"], "both": ["en", "de"]}
    settings = settings_of(corpus, tmp_path / "run", groups=groups, measure="uneven/few/i2t_r5", every_steps=100)
    settings["optimizer"]["total_steps"] = 1
    assert run_to_the_end(as_config(settings))
    (line,) = lines_of(tmp_path / "run")
    numbers = line["numbers"]
    assert line["value"] == numbers["uneven/few/i2t_r5"] == numbers["uneven/de/i2t_r5"]
    assert numbers["images/both/t2i_r1"] == pytest.approx(
        (numbers["images/en/t2i_r1"] + numbers["images/de/t2i_r1"]) / 2
    )


def test_what_a_set_has_not_is_said_at_the_start(corpus: Path, tmp_path: Path) -> None:
    for wrong in ({"groups": {"x": ["fr"]}}, {"measure": "uneven/fr/t2i_r1"}):
        with (
            pytest.raises(ConfigError, match=r"captions in fr, got those in de, en"),
            open_run(as_config(settings_of(corpus, tmp_path / "run", **wrong)), StopRequest()),
        ):
            pass


def test_values_of_another_measure_choose_nothing(corpus: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = as_config(settings_of(corpus, run))
    settings = config.evaluation
    assert settings is not None
    with open_run(config, StopRequest()) as opened:
        assert opened is not None
        opened.evaluation.note(2, {"value": 99.0, "kind": "another"})  # type: ignore[attr-defined]
        assert read_pins(run) == Pins()
        opened.evaluation.note(4, {"value": 5.0, "kind": opened.evaluation._kind})  # type: ignore[attr-defined]
        opened.evaluation.note(6, {"value": 7.0, "kind": opened.evaluation._kind})  # type: ignore[attr-defined]
        assert read_pins(run).steps == [6, 4]


def test_a_checkpoint_that_bad_steps_follow_is_not_the_best(corpus: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with open_run(as_config(settings_of(corpus, run)), StopRequest()) as opened:
        assert opened is not None
        measured: Any = opened.evaluation
        for step, value in ((20, 5.0), (40, 9.0), (60, 7.0)):
            measured._step = step
            measured.note(step, {"value": value, "kind": measured._kind})
        assert read_pins(run) == Pins(steps=[40, 60, 20], keep=1, proven=50)
        (run / "bad_steps.jsonl").write_text('{"step": 49}\n')
        measured.rewind(70)
        assert read_pins(run) == Pins(steps=[60, 20], keep=1, proven=60)
