"""A view that is one file and one entry of a table trains, is written down everywhere, and resumes bit by bit."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from cclm.cli.__main__ import main as cclm
from cclm.data.ledger import step_sum
from cclm.data.loader import StepDataset
from cclm.data.tokens import load_tokenizer
from cclm.engine.stored_weights import load_full_state
from cclm.run.stop import STOPPED_CODE
from cclm.views.table import make_views
from cclm.views.view import open_dataset
from tests.end_to_end.train_four_views import STEPS, TABLE, config_of, main
from tests.fourth_view import spectrogram
from tests.ranks.harness import in_group, on_ranks
from tests.same_runs import values_of
from tests.tiny_run import write_corpus

BROKEN = {11, 40, 71}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"), broken=BROKEN)


def start(corpus: Path, run: Path, *stop_after: str) -> int:
    """Train on two ranks; returns the exit code."""
    first, second = on_ranks(in_group, 2, main, [str(corpus), str(run), *stop_after], timeout_s=900.0)
    assert first == second
    return first


@pytest.fixture(scope="module")
def unbroken(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("unbroken") / "run"
    assert start(corpus, run) == 0
    return run


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def open_alone(corpus: Path, run: Path) -> StepDataset:
    """The run's data in one process."""
    config = config_of(corpus, run)
    views = make_views(config.views, TABLE)
    return open_dataset(views, config.data, load_tokenizer(config.data.tokenizer), config.seed)


@pytest.mark.slow
def test_it_is_in_the_log(unbroken: Path) -> None:
    lines = lines_of(unbroken / "log.jsonl")
    assert [line["step"] for line in lines] == list(range(STEPS))
    own = {f"audio_text/{name}" for name in ("atc", "atm", "atm_accuracy", "mlm", "mlm_accuracy")}
    others = {"image_text/itc", "image_text/itm", "image_text/mlm", "text_pair/ttc", "text_pair/ttm", "text_pair/mlm"}
    for line in lines:
        values = line["values"]
        assert own | others < values.keys()
        assert all(math.isfinite(value) for value in values.values())
        parts = [values[name] for name in own | others if not name.endswith("_accuracy")]
        assert values["loss"] == pytest.approx(sum(parts), rel=1e-5)
    assert lines[-1]["values"]["audio_text/atc"] < lines[0]["values"]["audio_text/atc"], "it is learned"
    assert any("audio_text" in name for name in lines[-1]["values"] if name.startswith("speed/"))


@pytest.mark.slow
def test_it_is_in_the_ledger(corpus: Path, unbroken: Path) -> None:
    sums = [line["sums"] for line in lines_of(unbroken / "ledger.jsonl")]
    dataset = open_alone(corpus, unbroken)
    expected = [
        {name: step_sum(view.ledger_S.numpy()) for name, view in dataset[step].views.items()} for step in range(STEPS)
    ]
    assert sums == expected and all(set(of_step) == {"audio_text", "image_text", "text_pair"} for of_step in sums)
    assert cclm(["verify-ledger", str(unbroken)]) == 0


@pytest.mark.slow
def test_it_is_counted(corpus: Path, unbroken: Path) -> None:
    last = values_of(unbroken)[-1]
    assert last["seen/audio_text/images"] == STEPS * 16
    assert last["seen/audio_text/images/en"] + last["seen/audio_text/images/de"] == STEPS * 16
    bad = [line for path in unbroken.glob("quarantine/rank_*.jsonl") for line in lines_of(path)]
    own = [line for line in bad if line["view"] == "audio_text"]
    assert {line["key"] for line in own} <= {f"k{number}" for number in BROKEN} and own
    assert {line["reason"] for line in own} == {"recording_silent"}
    assert {line["source"] for line in own} == {str(corpus / "images")}
    assert "audio_text" in (unbroken / "config.yaml").read_text(encoding="utf-8")


@pytest.mark.slow
def test_it_resumes_bit_by_bit(corpus: Path, unbroken: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert start(corpus, run, "5") == STOPPED_CODE
    assert json.loads((run / "stopped.json").read_text(encoding="utf-8"))["step"] == 5
    assert [line["step"] for line in values_of(run)] == list(range(5))
    assert start(corpus, run) == 0
    assert values_of(run) == values_of(unbroken)
    for name in ("ledger.jsonl", "quarantine/rank_0.jsonl", "quarantine/rank_1.jsonl"):
        assert (run / name).read_bytes() == (unbroken / name).read_bytes(), name
    first, second = (load_full_state(folder / f"checkpoints/step_{STEPS:09d}") for folder in (run, unbroken))
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def test_a_silent_recording_is_a_bad_sample(corpus: Path, tmp_path: Path) -> None:
    """Quick: the data alone, in one process."""
    dataset = open_alone(corpus, tmp_path)
    batch = dataset[0]
    assert list(batch.views) == ["image_text", "text_pair", "audio_text"]
    audio = batch.normalised().views["audio_text"]
    assert audio.images is not None and audio.images.shape == (16, 3, 16, 16)
    assert audio.images.dtype == torch.float32 and -2 <= audio.images.min() < audio.images.max() <= 2
    bad = [sample for step in range(8) for sample in dataset[step].bad_samples if sample.view == "audio_text"]
    assert bad and {sample.reason for sample in bad} == {"recording_silent"}


def test_what_it_hears() -> None:
    """A tone is loud at its own frequency, at all moments."""
    for wanted in (3, 9):
        tone = (100 * torch.sin(2 * math.pi * wanted / 32 * torch.arange(400))).to(torch.int8).numpy().tobytes()
        assert set(spectrogram(tone, 16).argmax(0)) == {wanted}
