from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cclm.checkpoint.collective import save_checkpoint
from cclm.engine.fragments import share_path
from cclm.engine.options import OptimizerConfig
from cclm.engine.plain import PlainEngine
from cclm.engine.protocol import Losses
from cclm.errors import CclmError, CheckpointError
from cclm.hub.export import (
    REPLACED,
    Weights,
    check_target,
    checkpoint_source,
    export,
    reference_for,
    staging_directory,
)
from cclm.hub.open import OpenedModel, build_model, is_export, open_model
from cclm.hub.parity import Difference, ParityReport
from cclm.hub.reference_outputs import make_recorder, read_reference, reference_of
from cclm.hub.weight_files import in_memory
from cclm.model.modeling_cclm import CCLMModel
from cclm.run.checkpoints import CheckpointFacts, Marker, list_files, record_file, write_marker
from tests.engine_values import full_parameters


def run_export(opened: OpenedModel, to: Path) -> ParityReport:
    return export(
        opened,
        to,
        source=in_memory(opened.model.state_dict()),
        papers=lambda report: {"README.md": f"max {report.max_abs}"},
    )


def report_of(max_abs: float) -> ParityReport:
    return ParityReport(
        reference="engine",
        parts={"image_features": Difference(max_abs=max_abs, min_cosine=1.0)},
        recall={},
        num_images=8,
        num_texts=16,
        dtype="float32",
        tolerance=1e-4,
    )


def test_only_an_export_or_nothing_is_replaced(opened: OpenedModel, tmp_path: Path) -> None:
    check_target(tmp_path / "new")
    check_target(tmp_path)
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(CheckpointError, match="a new folder or an older export"):
        check_target(tmp_path)
    with pytest.raises(CheckpointError, match="a new folder"):
        check_target(tmp_path / "thesis.txt")
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.json").write_text('{"model_type": "bert"}')
    assert not is_export(tmp_path / "old")
    (tmp_path / "old" / "config.json").write_text('{"model_type": "cclm"}')
    check_target(tmp_path / "old")


@pytest.mark.parametrize("to", [".", "..", "/", "empty", "empty/../empty"])
def test_the_folder_that_a_command_runs_in_is_never_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    place = tmp_path / to if "empty" in to else Path(to)
    with pytest.raises(CheckpointError) as caught:
        check_target(place)
    assert caught.value.where == str(place)


def test_a_relative_place_is_that_of_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    for to, made in (("../beside", tmp_path / "beside"), ("inside", tmp_path / "below" / "inside")):
        check_target(Path(to))
        with staging_directory(Path(to)) as folder:
            folder.mkdir()
        assert made.is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(CclmError, match="a folder that can be made and written in"):
        check_target(tmp_path / "file" / "out")


def test_a_failed_check_leaves_the_old_export_and_no_rubbish(
    opened: OpenedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    old = tmp_path / "model"
    old.mkdir()
    (old / "config.json").write_text('{"model_type": "cclm", "mine": 1}')

    def fails(*_: object, **__: object) -> ParityReport:
        raise CheckpointError(expected="the same", got="something else", do="Nothing was exported.")

    monkeypatch.setattr("cclm.hub.export.check_parity", fails)
    with pytest.raises(CheckpointError, match="something else"):
        run_export(opened, old)
    assert json.loads((old / "config.json").read_text())["mine"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_old_export_is_replaced_as_a_whole(
    opened: OpenedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    old = tmp_path / "model"
    old.mkdir()
    (old / "config.json").write_text('{"model_type": "cclm"}')
    (old / "leftover.bin").write_text("x")
    monkeypatch.setattr("cclm.hub.export.check_parity", lambda *_, **__: report_of(1e-6))
    run_export(opened, old)
    assert not (old / "leftover.bin").exists()
    assert (old / "README.md").read_text() == "max 1e-06"
    assert json.loads((old / "parity.json").read_text())["max_abs"] == 1e-6
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    (tmp_path / "plain").touch()
    assert (old / "model.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_what_a_killed_export_left_is_cleared_and_a_running_one_is_left_alone(tmp_path: Path) -> None:
    left = tmp_path / ".export-model" / "model"
    left.mkdir(parents=True)
    (left / "half.safetensors").write_text("x")
    with staging_directory(tmp_path / "model") as folder:
        assert list(folder.parent.iterdir()) == []
        folder.mkdir()
        with pytest.raises(CheckpointError, match="another one that is running"), staging_directory(tmp_path / "model"):
            pass
        assert folder.is_dir(), "the refused one has not cleared the other's folder"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), staging_directory(tmp_path / "model") as folder:
        folder.mkdir()
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_an_export_says_which_checkpoint_it_is(
    opened: OpenedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    trained = replace(opened, checkpoint=CheckpointFacts(step=12, identity="a1"))
    reference = reference_of(opened)
    monkeypatch.setattr("cclm.hub.parity.outputs_of_clean_process", lambda *_: [reference.outputs])
    report = run_export(trained, tmp_path / "model")
    assert (report.step, report.checkpoint) == (12, "a1")
    assert open_model(tmp_path / "model").checkpoint == trained.checkpoint


def test_an_export_killed_between_the_two_renames_gives_the_old_one_back(tmp_path: Path) -> None:
    old = tmp_path / ".export-model" / REPLACED
    old.mkdir(parents=True)
    (old / "config.json").write_text("mine")
    with staging_directory(tmp_path / "model") as folder:
        assert (tmp_path / "model" / "config.json").read_text() == "mine"
        folder.mkdir()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


class Training(torch.nn.Module):
    """Every weight's square."""

    def __init__(self, model: CCLMModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Any) -> Losses:
        total = torch.stack([value.square().sum() for value in self.model.parameters()]).sum()
        return Losses(total=total, metrics={})


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["last", "ema"])
def test_averaged_weights_can_be_exported_and_are_their_own_reference(
    opened: OpenedModel, tmp_path: Path, weights: Weights
) -> None:
    optimizer = OptimizerConfig(total_steps=10, learning_rate=0.1, ema_decay=0.9)
    engine = PlainEngine(Training(build_model(opened.config, opened.model.state_dict(), "here").train()), optimizer)
    engine.module.requires_grad_(True)
    begin = full_parameters(engine)
    engine.backward(engine.forward(SimpleNamespace(step=0, update=0, part=0)))
    engine.update(0)
    record = make_recorder(opened.tokenizer, opened.transform, opened.max_tokens)
    path = save_checkpoint(engine, tmp_path, 1, {}, keep=1, reference_outputs=record)
    prepared, source = replace(opened, origin=path), checkpoint_source(path, weights)
    after, decay = full_parameters(engine), 0.0 if weights == "last" else 0.1  # (1 + 0) / (10 + 0): young averages
    for name, value in after.items():
        stored = source()[name.removeprefix("model.")].whole()
        torch.testing.assert_close(stored, decay * begin[name] + (1 - decay) * value, msg=name)
    before = set(tmp_path.iterdir())
    reference = reference_for(prepared, source, tmp_path, weights)
    assert set(tmp_path.iterdir()) == before
    assert reference.origin.startswith("training engine" if weights == "last" else "averaged weights (EMA)")
    recorded = read_reference(path)
    assert recorded is not None
    same = torch.equal(reference.outputs["image_features"], recorded.outputs["image_features"])
    assert same == (weights == "last")


def test_a_run_without_averages_says_so(opened: OpenedModel, tmp_path: Path) -> None:
    engine = PlainEngine(Training(opened.model), OptimizerConfig(total_steps=10))
    with pytest.raises(CheckpointError, match=r"expected averaged weights, got none. Train with optimizer\.ema_decay"):
        checkpoint_source(save_checkpoint(engine, tmp_path, 1, {}, keep=1), "ema")


class Harmful:
    """What a prepared file could hold: it makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def test_an_export_runs_no_code_of_a_checkpoint(opened: OpenedModel, tmp_path: Path) -> None:
    """Not even if the marker vouches for the file."""
    engine: PlainEngine[Any] = PlainEngine(Training(opened.model), OptimizerConfig(total_steps=10))
    path = save_checkpoint(engine, tmp_path, 1, {}, keep=1)
    torch.save({"state": Harmful(tmp_path / "made")}, tmp_path / "bait.pt")
    share_path(path, 0).write_bytes((tmp_path / "bait.pt").read_bytes())
    write_marker(
        path, Marker(step=1, world_size=1, files={name: record_file(path / name) for name in list_files(path)})
    )
    with pytest.raises(CheckpointError, match="a readable file of a rank's state"):
        checkpoint_source(path, "last")()
    assert not (tmp_path / "made").exists()
