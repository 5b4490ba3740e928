"""A step of a run again, beside what the run wrote down."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cclm.config import RunConfig
from cclm.engine.plain import PlainEngine
from cclm.run.causes import EXIT_CODES, Cause
from cclm.train.replay import DIFFERENT, EQUAL, history_of
from pretrain.__main__ import main
from tests.fault import bad_at
from tests.left_to_long import left_to_slow
from tests.tiny_run import recipe, write_corpus
from tests.tiny_training import as_config, run_to_the_end

STEPS = 10
FORWARD = PlainEngine.forward


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def config(corpus: Path) -> Iterator[RunConfig]:
    """A run that was bad in steps 5 and 6 and has rolled back: 3 to 6 are left out; bad in step 8, too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    settings = recipe(
        corpus,
        corpus / "run",
        engine="plain",
        optimizer={"total_steps": STEPS, "learning_rate": 0.002},
        track={"every_steps": 2, "tensorboard": False},
        checkpoint={"every_steps": 3, "keep": 9},
        health={"max_skipped": 1, "suspect_steps": 2},
    )
    settings["model"]["text"]["dropout"] = 0.1
    config = as_config(settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PlainEngine, "forward", bad_at(FORWARD, lambda step: step in (5, 6, 8)))
        assert run_to_the_end(config)
    torch.set_num_threads(before)
    yield config


def files_of(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def replayed(config: RunConfig, step: int, *options: str) -> int:
    folder = Path(config.run_folder)
    before = files_of(folder)
    code = main(["replay", str(folder), "--step", str(step), *options])
    assert files_of(folder) == before, "the run is only read"
    return code


@pytest.mark.parametrize("step", left_to_slow([1, 2, 7, 9], 1, 7))
def test_a_line_of_the_log_is_computed_again_bit_by_bit(
    config: RunConfig, step: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each is a mean of one step or two: checkpoints close a window, too, and 3 to 6 were left out."""
    assert replayed(config, step) == EQUAL
    said = capsys.readouterr().out
    assert "equal: all" in said and "log.jsonl" in said


@pytest.mark.slow
def test_a_bad_step_that_is_good_now_met_a_fault_of_the_machine(
    config: RunConfig, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert replayed(config, 8) == DIFFERENT
    assert "good now: a fault of the machine" in capsys.readouterr().out
    monkeypatch.setattr(PlainEngine, "forward", bad_at(FORWARD, lambda step: step in (5, 6, 8)))
    assert replayed(config, 8) == EQUAL
    said = capsys.readouterr().out
    assert "bad then, and bad again" in said and "gradients that are not finite" in said


def test_a_step_that_was_left_out_later_is_looked_at_as_it_was_done(
    config: RunConfig, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    history = history_of(Path(config.run_folder), 6)
    assert not history.rollbacks and history.checkpoint is not None and history.checkpoint.name == "step_000000003"
    assert [one.first for one in history_of(Path(config.run_folder), 7).rollbacks] == [3]
    monkeypatch.setattr(PlainEngine, "forward", bad_at(FORWARD, lambda step: step in (5, 6, 8)))
    assert replayed(config, 6) == EQUAL
    assert "left out: none" in capsys.readouterr().out


@pytest.mark.slow
def test_twice_tells_a_machine_that_computes_otherwise(
    config: RunConfig, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert replayed(config, 4, "--twice") == EQUAL, "it has no line, but two computations to compare"
    assert "wrote nothing about step 4 by itself" in capsys.readouterr().out
    assert replayed(config, 4) == EXIT_CODES[Cause.USER_ERROR], "there is nothing to compare with"
    calls = list[int]()

    def faulty(step: int) -> bool:
        calls.append(step)
        return step == 4 and calls.count(4) == 2

    monkeypatch.setattr(PlainEngine, "forward", bad_at(FORWARD, faulty, "large"))
    assert replayed(config, 4, "--twice") == DIFFERENT
    assert "loss" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["nowhere", "--step", "1"], ["RUN", "--step", "10"], ["RUN", "--step", "-1"]])
def test_what_cannot_be_replayed_is_a_sentence(
    config: RunConfig, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [config.run_folder if word == "RUN" else word for word in words]
    assert main(["replay", *words]) == EXIT_CODES[Cause.USER_ERROR]
    said = capsys.readouterr().err
    assert said.startswith("error: ") and "Traceback" not in said
