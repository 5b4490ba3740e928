from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import pytest

from cclm.errors import ConfigError
from cclm.files import lines
from cclm.run.progress import LOG_NAME
from cclm.track.metrics import MetricsLog, read_metrics
from cclm.track.trackers import CSV_NAME, Careful, Csv, TensorBoard, check_services


def log(folder: Path, resume_step: int = 0) -> MetricsLog:
    return MetricsLog(folder, True, resume_step, clock=lambda: 12.34567)


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


def test_a_line_without_time_or_values_is_left_out(tmp_path: Path) -> None:
    with closing(log(tmp_path)) as metrics:
        metrics.write(0, {"loss": 1.0})
        with (tmp_path / LOG_NAME).open("a") as file:
            file.write('{"step": 1}\n{"step": 2, "values": {"loss": 0}}\n{"step": 3, "time": 1, "values": null}\n')
        metrics.write(4, {"loss": 2.0})
    assert read_metrics(tmp_path) == [(0, {"loss": 1.0}), (4, {"loss": 2.0})]
    Csv(tmp_path).rewind(5)
    assert (tmp_path / CSV_NAME).read_text() == "step,time,loss\n0,12.346,1.0\n4,12.346,2.0\n"


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
    with closing(MetricsLog(tmp_path, True, trackers=[TensorBoard(tmp_path)])) as metrics:
        for step in range(4):
            metrics.write(step, {"loss": float(step)})
    with closing(MetricsLog(tmp_path, True, 2, trackers=[TensorBoard(tmp_path)])) as metrics:
        for step in (2, 3):
            metrics.write(step, {"loss": 10.0 + step})
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("loss")
    assert [(event.step, event.value) for event in events] == [(0, 0.0), (1, 1.0), (2, 12.0), (3, 13.0)]


def test_the_table_has_what_the_log_has_also_of_names_that_come_later(tmp_path: Path) -> None:
    def opened(step: int = 0) -> MetricsLog:
        return MetricsLog(tmp_path, True, step, trackers=[Csv(tmp_path)], clock=lambda: 7.0)

    with closing(opened()) as metrics:
        metrics.write(0, {"loss": 3.0})
        metrics.write(1, {"loss": math.nan})
        metrics.write(2, {"loss": 1.0, "recall": 0.5})
        metrics.write(3, {"loss": 0.5})
        metrics.write(4, {"loss": math.inf})
    with closing(opened(3)) as metrics:
        metrics.write(3, {"recall": 0.25})
    with (tmp_path / CSV_NAME).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["step"], row["loss"], row["recall"]) for row in rows] == [
        ("0", "3.0", ""), ("1", "", ""), ("2", "1.0", "0.5"), ("3", "", "0.25"),
    ]  # fmt: skip


class Failing:
    """A service that is down from its second line on."""

    def __init__(self) -> None:
        self.written: list[int] = []

    def rewind(self, step: int) -> None: ...

    def write(self, step: int, values: Mapping[str, float], time_s: float) -> None:
        if self.written:
            raise ConnectionError("it is down")
        self.written.append(step)

    def close(self) -> None:
        raise AssertionError("who has failed is left alone")


def test_a_service_that_fails_is_left_out_and_the_run_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    service = Failing()
    with closing(MetricsLog(tmp_path, True, trackers=[Careful("wandb", service)])) as metrics:
        for step in range(4):
            metrics.write(step, {"loss": 1.0})
    assert (service.written, steps(tmp_path)) == ([0], [0, 1, 2, 3])
    assert capsys.readouterr().err.count("wandb gets nothing more of this attempt: ConnectionError: it is down") == 1


def test_a_service_that_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cclm.track.trackers.find_spec", {"mlflow": object()}.get)
    check_services(["mlflow"])
    with pytest.raises(ConfigError) as caught:
        check_services(["mlflow", "wandb"])
    assert "pip install 'cclm-pretraining[wandb]'" in caught.value.do
