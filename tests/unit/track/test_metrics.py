from __future__ import annotations

import json
import math
from contextlib import closing
from pathlib import Path

import pytest

from cclm.files import lines
from cclm.track.metrics import LOG_NAME, MetricsLog, read_metrics


def log(folder: Path, resume_step: int = 0) -> MetricsLog:
    return MetricsLog(folder, True, resume_step, tensorboard=False, clock=lambda: 12.34567)


def steps(folder: Path) -> list[int]:
    return [step for step, _ in read_metrics(folder)]


def test_a_line_holds_step_time_and_values(tmp_path: Path) -> None:
    with closing(log(tmp_path)) as metrics:
        metrics.write(3, {"image_text/itc": 1.5, "temperature": 0.07})
    text = (tmp_path / LOG_NAME).read_text()
    assert json.loads(text) == {"step": 3, "time": 12.346, "values": {"image_text/itc": 1.5, "temperature": 0.07}}
    assert read_metrics(tmp_path) == [(3, {"image_text/itc": 1.5, "temperature": 0.07})]


def test_a_line_can_be_read_before_the_log_is_closed(tmp_path: Path) -> None:
    metrics = log(tmp_path)
    metrics.write(0, {"loss": 1.0})
    assert steps(tmp_path) == [0]
    metrics.close()


def test_values_that_are_not_finite_stay_valid_json(tmp_path: Path) -> None:
    with closing(log(tmp_path)) as metrics:
        metrics.write(0, {"loss": math.nan, "grad_norm": math.inf})
    assert '"loss":null' in (tmp_path / LOG_NAME).read_text()
    assert all(math.isnan(value) for value in read_metrics(tmp_path)[0][1].values())


def test_resume_drops_what_will_be_done_again(tmp_path: Path) -> None:
    with closing(log(tmp_path)) as metrics:
        for step in (0, 10, 20, 30):
            metrics.write(step, {"loss": float(step)})
    with closing(log(tmp_path, resume_step=20)) as metrics:
        assert steps(tmp_path) == [0, 10]
        metrics.write(20, {"loss": -1.0})
    assert [(step, values["loss"]) for step, values in read_metrics(tmp_path)] == [(0, 0.0), (10, 10.0), (20, -1.0)]


def test_a_new_run_in_an_old_folder_starts_an_empty_log(tmp_path: Path) -> None:
    with closing(log(tmp_path)) as metrics:
        metrics.write(5, {"loss": 1.0})
    log(tmp_path).close()
    assert steps(tmp_path) == []


def test_a_line_that_a_kill_cut_short_is_dropped(tmp_path: Path) -> None:
    with closing(log(tmp_path)) as metrics:
        metrics.write(0, {"loss": 1.0})
    path = tmp_path / LOG_NAME
    path.write_text(path.read_text() + '{"step": 1, "ti')
    assert steps(tmp_path) == [0]
    log(tmp_path, resume_step=100).close()
    assert path.read_text().endswith("}\n")
    assert list(tmp_path.iterdir()) == [path]


def test_sync_forces_the_log_to_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(lines, "sync", synced.append)
    with closing(log(tmp_path)) as metrics:
        metrics.sync()
        assert synced == []  # nothing was written
        metrics.write(0, {"loss": 1.0})
        metrics.sync()
    metrics.sync()
    assert synced == [tmp_path / LOG_NAME, tmp_path]


def test_a_disabled_log_touches_nothing(tmp_path: Path) -> None:
    with closing(MetricsLog(tmp_path / "run", False)) as metrics:
        metrics.write(0, {"loss": 1.0})
    assert not (tmp_path / "run").exists()
    assert read_metrics(tmp_path / "run") == []


def test_writing_after_the_end_does_nothing(tmp_path: Path) -> None:
    metrics = log(tmp_path)
    metrics.close()
    metrics.write(0, {"loss": 1.0})
    assert steps(tmp_path) == []


def test_tensorboard_shows_each_step_once_after_a_resume(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with closing(MetricsLog(tmp_path, True)) as metrics:
        for step in range(4):
            metrics.write(step, {"loss": float(step)})
    with closing(MetricsLog(tmp_path, True, resume_step=2)) as metrics:
        for step in (2, 3):
            metrics.write(step, {"loss": 10.0 + step})
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("loss")
    assert [(event.step, event.value) for event in events] == [(0, 0.0), (1, 1.0), (2, 12.0), (3, 13.0)]
