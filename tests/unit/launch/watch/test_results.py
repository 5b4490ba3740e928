from __future__ import annotations

import csv
import io
import json
import time
from pathlib import Path

import pytest

from cclm.run.status import DoneMarker
from launch.__main__ import main
from launch.plan.sweep import Sweep, write_sweep
from launch.slurm.history import Event, add_event
from tests.unit.launch.slurm.fake_slurm import FakeSlurm
from tests.unit.launch.slurm.run_folders import rank_says, write_plan


@pytest.fixture
def folder(tmp_path: Path, fake_slurm: FakeSlurm) -> Path:
    """Five points: done and measured, done with a higher loss, failed, running, not begun."""
    points = (*({"optimizer.learning_rate": rate} for rate in (0.1, 0.01, 0.001, 0.0001)), {"seed": 2})
    write_sweep(tmp_path, Sweep(recipe="r", base={}, points=points), [])
    for number, losses in enumerate(((3.0, 1.25), (4.0, 2.5), (float("nan"),), (5.0,))):
        run = tmp_path / f"points/{number}"
        run.mkdir(parents=True)
        lines = [{"step": step, "time": 1.0, "values": {"loss": loss}} for step, loss in enumerate(losses)]
        lines[0]["values"]["early"] = 7.0  # type: ignore[index]
        (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (run / "config.yaml").write_text("optimizer: {total_steps: 2}\n")
    for number in range(2):
        DoneMarker(tmp_path / f"points/{number}").write(step=2, seconds=1.0)
    recall = {"languages": {"de": {"image_to_text": {"r1": 12.5}}}, "rule": "sum", "found": True}
    (tmp_path / "points/0/results.json").write_text(json.dumps(recall))
    for number, job in ((2, "7_2"), (3, "7_3")):
        run = tmp_path / f"points/{number}"
        add_event(run, Event(event="submitted", job=job, by_user=True))
        add_event(run, Event(event="begin", job=job, attempt=0, step=0))
        write_plan(run)
    rank_says(tmp_path / "points/3", 0, step=1, time=time.time())
    why = "rank 0 on n1: exit code 2: error: loss is not finite"
    add_event(tmp_path / "points/2", Event(event="end", job="7_2", attempt=0, exit_status="failed", reason=why))
    fake_slurm.queue(("7_2", "FAILED"), ("7_3", "RUNNING"))
    return tmp_path


def test_a_table(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep-results", str(folder), "--metric", "languages.de.image_to_text.r1"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "point  optimizer.learning_rate  seed  state      step  loss  languages.de.image_to_text.r1",
        "    0  0.1                            done        2/2  1.25                           12.5",
        "    1  0.01                           done        2/2   2.5                              -",
        "    2  0.001                          failed      1/2   nan                              -",
        "    3  0.0001                         training    1/2     5                              -",
        "    4                           2     not begun     0     -                              -",
        "point 2: rank 0 on n1: exit code 2: error: loss is not finite",
    ]


@pytest.mark.parametrize(
    ("words", "order"),
    [
        (["--sort", "loss"], [0, 1, 3, 2, 4]),
        (["--sort", "loss", "--descending"], [3, 1, 0, 2, 4]),
        (["--sort", "step"], [4, 2, 3, 0, 1]),
        (["--sort", "languages.de.image_to_text.r1"], [0, 1, 2, 3, 4]),
    ],
)
def test_sorted_with_missing_numbers_last(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], order: list[int]
) -> None:
    assert main(["sweep-results", str(folder), "--json", *words]) == 0
    assert [row["point"] for row in json.loads(capsys.readouterr().out)] == order


def test_csv_has_numbers_in_full(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep-results", str(folder), "--csv", "--metric", "early"]) == 0
    head, first, *_, last = csv.reader(io.StringIO(capsys.readouterr().out))
    assert head == ["point", "optimizer.learning_rate", "seed", "state", "step", "total_steps", "loss", "early"]
    assert first == ["0", "0.1", "", "done", "2", "2", "1.25", "7.0"], "the newest line that has the name counts"
    assert last == ["4", "", "2", "not begun", "0", "", "", ""]


def test_an_unknown_metric_is_a_sentence(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep-results", str(folder), "--metric", "los"]) == 2
    told = capsys.readouterr().err
    assert "--metric: expected some of early, languages.de.image_to_text.r1, loss, got los" in told


def test_without_slurms_answer_the_folders_still_speak(
    folder: Path, capsys: pytest.CaptureFixture[str], fake_slurm: FakeSlurm
) -> None:
    fake_slurm.program("squeue", "echo 'Unable to contact slurm controller' >&2; exit 1")
    assert main(["sweep-results", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[2] for line in lines[1:5]] == ["done", "done", "unknown", "unknown"]
    assert lines[-1].startswith("point 3: squeue: expected the state of jobs, got Unable to contact slurm controller")


def test_a_broken_point_does_not_hide_the_others(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "points/2/slurm/plan.json").unlink()
    assert main(["sweep-results", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[2] for line in lines[1:5]] == ["done", "done", "unreadable", "training"]
    assert lines[-1].startswith(f"point 2: {folder}/points/2: expected slurm/plan.json")


def test_a_folder_without_a_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep-results", str(tmp_path)]) == 2
    assert "expected the folder of a sweep, with sweep.json, got none" in capsys.readouterr().err


def test_results_that_are_no_object_have_no_numbers(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "points/0/results.json").write_text("[1, 2]")
    assert main(["sweep-results", str(folder)]) == 0
    assert "1.25" in capsys.readouterr().out
