"""What services keep of a run, read back by their own means, without a network. `make test-trackers` installs them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cclm.run.status import run_identity
from cclm.track.metrics import MetricsLog
from cclm.track.trackers import Careful, service

CONFIG = {"seed": 7, "model": {"width": 64}}


def run_twice(name: str, folder: Path) -> None:
    """A run that was cut off behind its fourth line resumes at its third."""
    for first, stop, loss in ((0, 4, 1.0), (2, 5, 10.0)):
        tracker = service(name, folder, "cclm-test", CONFIG)
        with closing(MetricsLog(folder, True, first, trackers=[tracker])) as metrics:
            for step in range(first, stop):
                metrics.write(step, {"loss": loss + step, "image_text/itc": 0.5})
        assert isinstance(tracker, Careful) and not tracker.has_failed


def of_steps(values: Mapping[int, float]) -> None:
    assert values == {0: 1.0, 1: 2.0, 2: 12.0, 3: 13.0, 4: 14.0}


def log_records(content: bytes) -> Iterator[bytes]:
    """The records of a LevelDB log (crc, length, type; blocks of 32 kB) behind a header of seven bytes."""
    place, record = 7, b""
    while place + 7 <= len(content):
        if 2**15 - place % 2**15 < 7:  # the end of a block is padding
            place += 2**15 - place % 2**15
            continue
        length, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        record += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv("WANDB_MODE", "offline")
    run_twice("wandb", tmp_path)
    files = sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime_ns)
    assert len({path.name for path in files}) == 1 and len(files) == 2, (
        "one run in two parts, as `wandb sync` takes them"
    )
    found = dict[int, float]()
    for path in files:
        for data in log_records(path.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if items := {"/".join(item.nested_key) or item.key: item.value_json for item in record.history.item}:
                found[json.loads(items["step"])] = json.loads(items["loss"])
    of_steps(found)


def test_mlflow_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow: Any = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/mlruns")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    run_twice("mlflow", tmp_path)
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("cclm-test")
    (run,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(run.info.run_id, "loss")
    of_steps({entry.step: entry.value for entry in sorted(history, key=lambda entry: entry.timestamp)})
    assert run.info.status == "FINISHED"


def test_trackio_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio")
    run_twice("trackio", tmp_path)
    name = f"{tmp_path.name}-{run_identity(tmp_path)}"
    words = ["get", "metric", "--project", "cclm-test", "--run", name, "--metric", "loss", "--json"]
    told = subprocess.run(
        [Path(sys.executable).with_name("trackio"), *words], check=True, capture_output=True, text=True, timeout=120
    ).stdout
    of_steps({entry["step"]: entry["value"] for entry in json.loads(told)["values"]})
