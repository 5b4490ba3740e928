"""The demo calls, skips, times and stops the right things. Its commands are replaced by tiny ones."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from cclm.engine.parts import freeze
from cclm.pretrained.import_cclm import meta_model
from cclm.recipe.read import read_recipe
from cclm.report import stages
from cclm.report.stages import Stage, read_rows, run_command, run_stage
from cclm.run.checkpoints import identify
from pretrain import demo
from pretrain.demo import is_exported, is_measured, plan, second_stage
from tests.tiny_checkpoint import write_checkpoint


def stage_of(run: Path, **changes: Any) -> Stage:
    values: dict[str, Any] = {"name": "train", "explanation": "E", "commands": ("this",), "home": run}
    return Stage(**{**values, **changes})


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Commands that were called; each ends well."""
    found: list[str] = []

    def call(command: str, on_wait: object) -> int:
        found.append(command)
        return 0

    monkeypatch.setattr(stages, "run_command", call)
    return found


def write_results(run: Path, identity: str, shards: str = "data/demo/image-test") -> None:
    results = {"model": {"checkpoint": identity}, "set": {"shards": shards}, "seconds": {"evaluate": 1.0}}
    (run / "results.json").write_text(json.dumps(results))
    (run / "gallery.json").write_text("[]")


# --- the plan ---


def test_every_training_command_is_a_valid_configuration() -> None:
    for ablation in (False, True):
        planned = {stage.name: stage for stage in plan(Path("runs/x"), ablation=ablation, seed=7)}
        command = shlex.split(planned["train"].commands[0])
        config = read_recipe(command[command.index("pretrain") + 1 :])
        assert (config.seed, config.run_folder) == (7, "runs/x")
        assert list(config.views) == ["image_text", "text_pair"][: 1 if ablation else 2]
        assert config.optimizer.total_steps > 1000
    assert list(planned) == ["fetch", "shards", "tokenizer", "train", "measure", "export", "report"]


def test_the_second_stage_trains_the_fusion_encoder_of_the_first() -> None:
    planned = {
        stage.name: stage
        for stage in plan(Path("runs/x"), ablation=False, seed=7, overrides=second_stage(Path("runs/demo")))
    }
    command = shlex.split(planned["train"].commands[0])
    config = read_recipe(command[command.index("pretrain") + 1 :])
    assert config.start.sources == ("runs/demo/export",)
    assert config.objectives.hardness == 1 and config.objectives.hardness_full_step == 0
    model = meta_model(config.model)
    freeze(torch.nn.ModuleDict({"model": model}), config.start.freeze)
    trained = {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {"fusion_encoder", "matching_head", "masked_lm_transform", "masked_lm_decoder"}
    assert planned["train"].explanation.startswith("fusion encoder")


def test_a_second_stage_needs_a_finished_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        demo.main(["--second-stage", str(tmp_path)])
    assert ended.value.code == 2 and "is no finished demo" in capsys.readouterr().err


def test_building_and_training_are_always_called() -> None:
    planned = {stage.name: stage for stage in plan(Path("runs/x"), ablation=False, seed=7)}
    assert {name for name, one in planned.items() if one.is_always_called} == {"fetch", "shards", "train"}
    assert "--rerank-groups english parallel_non_latin" in planned["measure"].command


# --- what is fresh ---


def test_results_count_only_for_the_newest_checkpoint_and_the_demos_set(tmp_path: Path) -> None:
    test_set = Path("data/demo/image-test")
    assert not is_measured(tmp_path, test_set)
    old = identify(write_checkpoint(tmp_path, 5, "x"))
    write_results(tmp_path, old.identity)
    assert is_measured(tmp_path, test_set)
    (tmp_path / "gallery.json").unlink()
    assert not is_measured(tmp_path, test_set)
    write_results(tmp_path, old.identity, shards="data/demo/image-dev")
    assert not is_measured(tmp_path, test_set)
    write_results(tmp_path, old.identity)
    write_checkpoint(tmp_path, 9, "x")
    assert not is_measured(tmp_path, test_set)


@pytest.mark.parametrize("missing", ["parity.json", "export/parity.json"])
def test_an_export_needs_both_proofs_of_the_newest_checkpoint(tmp_path: Path, missing: str) -> None:
    identity = identify(write_checkpoint(tmp_path, 5, "x")).identity
    (tmp_path / "export").mkdir()
    for path in ("parity.json", "export/parity.json"):
        (tmp_path / path).write_text(json.dumps({"checkpoint": identity}))
    assert is_exported(tmp_path)
    (tmp_path / missing).unlink()
    assert not is_exported(tmp_path)
    (tmp_path / missing).write_text('{"checkpoint": "another"}')
    assert not is_exported(tmp_path)


def test_measuring_anew_makes_the_export_old(tmp_path: Path, called: list[str]) -> None:
    (tmp_path / "parity.json").write_text("{}")
    measure = next(one for one in plan(tmp_path, ablation=False, seed=1) if one.name == "measure")
    assert run_stage(measure, tmp_path) == 0
    assert len(called) == 1 and not (tmp_path / "parity.json").exists()


# --- rows and seconds ---


def test_a_skipped_stage_keeps_its_row(tmp_path: Path, called: list[str]) -> None:
    item = stage_of(tmp_path, is_done=lambda: True)
    row = {"name": "train", "command": item.command, "seconds": 611.0, "finished": True}
    (tmp_path / "stages.json").write_text(json.dumps([row]))
    assert run_stage(item, tmp_path) == 0
    assert called == [] and read_rows(tmp_path) == {"train": row}


def test_a_product_of_another_command_is_made_anew(tmp_path: Path, called: list[str]) -> None:
    row = {"name": "train", "command": "python -m other", "seconds": 611.0, "finished": True}
    (tmp_path / "stages.json").write_text(json.dumps([row]))
    assert run_stage(stage_of(tmp_path, is_done=lambda: True), tmp_path) == 0
    assert called == ["this"] and read_rows(tmp_path)["train"]["seconds"] < 611.0


def test_a_half_done_stage_is_not_taken_for_a_repeated_one(tmp_path: Path, called: list[str]) -> None:
    item = stage_of(tmp_path, is_done=lambda: True, is_always_called=True)
    row = {"name": "train", "command": item.command, "seconds": 30.0, "finished": False}
    (tmp_path / "stages.json").write_text(json.dumps([row]))
    assert run_stage(item, tmp_path) == 0
    row = read_rows(tmp_path)["train"]
    assert row["finished"] and 30.0 <= row["seconds"] < 60.0


def test_another_look_at_what_is_done_keeps_the_seconds(tmp_path: Path, called: list[str]) -> None:
    item = stage_of(tmp_path, is_done=lambda: True, is_always_called=True)
    row = {"name": "train", "command": item.command, "seconds": 611.0, "finished": True}
    (tmp_path / "stages.json").write_text(json.dumps([row]))
    assert run_stage(item, tmp_path) == 0
    assert called == ["this"] and read_rows(tmp_path)["train"]["seconds"] == 611.0


def test_seconds_add_up_over_the_lives_of_a_stage(tmp_path: Path, called: list[str]) -> None:
    item = stage_of(tmp_path)
    row = {"name": "train", "command": item.command, "seconds": 400.0, "finished": False}
    (tmp_path / "stages.json").write_text(json.dumps([row]))
    write_results(tmp_path, "a1")
    assert run_stage(item, tmp_path) == 0
    assert 400.0 <= read_rows(tmp_path)["train"]["seconds"] < 800.0
    seconds = json.loads((tmp_path / "results.json").read_text())["seconds"]
    assert seconds == {"evaluate": 1.0, "train": read_rows(tmp_path)["train"]["seconds"]}
    assert run_stage(item, tmp_path) == 0
    assert read_rows(tmp_path)["train"]["seconds"] < 400.0, "a finished stage that is done anew starts from zero"


def test_data_done_by_another_run_bring_their_seconds(tmp_path: Path, called: list[str]) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    item = stage_of(data, name="shards", is_done=lambda: True, is_always_called=True)
    data.mkdir()
    row = {"name": "shards", "command": item.command, "seconds": 70.0, "finished": True}
    (data / "stages.json").write_text(json.dumps([row]))
    assert run_stage(item, run) == 0
    assert read_rows(run) == read_rows(data) == {"shards": row}


def test_a_refused_command_does_not_touch_the_row_of_what_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"name": "train", "command": "python -m old", "seconds": 611.0, "finished": True}
    (tmp_path / "stages.json").write_text(json.dumps([row]))
    monkeypatch.setattr(stages, "run_command", lambda command, on_wait: 2)
    assert run_stage(stage_of(tmp_path, is_done=lambda: True, is_always_called=True), tmp_path) == 2
    assert read_rows(tmp_path) == {"train": row}


def test_a_failing_stage_ends_the_demo_with_its_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "plan", lambda run, **_: [stage_of(run), stage_of(run, name="never")])
    monkeypatch.setattr(stages, "run_command", lambda command, on_wait: 7)
    assert demo.main(["--run", str(tmp_path / "run")]) == 7
    assert "stage train ended with code 7" in capsys.readouterr().err
    assert set(read_rows(tmp_path / "run")) == {"train"}


def test_a_second_demo_ends_with_the_table_and_the_report_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, called: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    recall = {way: {"r1": 12.34, "r5": 20.0, "r10": 30.0} for way in ("t2i", "i2t")}
    results = {"chance": recall, "groups": {"english": recall}, "languages": {"en": recall}}
    (tmp_path / "results.json").write_text(json.dumps(results))
    monkeypatch.setattr(demo, "plan", lambda run, **_: [stage_of(run, is_done=lambda: True)])
    assert demo.main(["--run", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("english") and "12.3" in line for line in lines)
    assert lines[-1].endswith(f"Open {tmp_path}/report.html")


# --- processes ---


def test_python_after_two_hyphens_is_this_interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\nexit 9\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    module = tmp_path / "echoing.py"
    module.write_text(f"import sys; sys.exit(sys.argv[1:] != ['--', {sys.executable!r}, '-m', 'python'])")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert run_command("echoing -- python -m python", lambda: None) == 0


@pytest.mark.slow
def test_ctrl_c_waits_for_the_child_and_says_how_to_go_on(tmp_path: Path) -> None:
    child = (
        "import pathlib, signal, time\n"
        "def stop(*_):\n"
        "    time.sleep(0.6)\n"
        f"    pathlib.Path({str(tmp_path / 'saved')!r}).touch()\n"
        "    raise SystemExit(130)\n"
        "signal.signal(signal.SIGINT, stop)\n"
        f"pathlib.Path({str(tmp_path / 'ready')!r}).touch()\n"
        "time.sleep(600)\n"
    )
    (tmp_path / "slow_child.py").write_text(child)
    code = (
        "import signal, sys; from pathlib import Path; from pretrain import demo\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a background shell starts us deaf to it
        f"run = Path({str(tmp_path / 'run')!r})\n"
        "item = demo.Stage(name='train', explanation='E', commands=('slow_child',), home=run)\n"
        "demo.plan = lambda run, **_: [item]\n"
        "sys.exit(demo.main(['--run', str(run)]))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{Path.cwd()}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    limit = time.monotonic() + 120
    while not (tmp_path / "ready").exists() and time.monotonic() < limit:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 130
    assert error.strip() == "stopped; the same command goes on"
    assert (tmp_path / "saved").exists(), "the child had its time"
    row = read_rows(tmp_path / "run")["train"]
    assert row["finished"] is False and row["seconds"] > 0.5


def test_a_broken_results_file_is_one_sentence(
    tmp_path: Path, called: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(tmp_path, 5, "x")
    (tmp_path / "results.json").write_text("{")
    monkeypatch.setattr(demo, "DATA", tmp_path / "data")
    assert demo.main(["--run", str(tmp_path)]) == 2
    assert "broken JSON" in capsys.readouterr().err
