"""How far a run has come, from its folder alone."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path

import pytest

from cclm.run.causes import Cause
from cclm.run.progress import last_values, read_progress, slow_ranks
from cclm.run.status import RankStatus, note_end


def write_log(run: Path, lines: list[tuple[int, float, float]], rest: str = "") -> None:
    run.mkdir(parents=True, exist_ok=True)
    text = "".join(
        json.dumps({"step": step, "time": time, "values": {"loss": loss, "speed/samples_per_s": 4.0}}) + "\n"
        for step, time, loss in lines
    )
    (run / "log.jsonl").write_text(text + rest)


def test_a_folder_without_anything(tmp_path: Path) -> None:
    found = read_progress(tmp_path)
    assert (found.phase, found.step, found.checkpoint_step, found.is_done) == ("", 0, 0, False)
    assert found.loss is found.eta_s is found.total_steps is found.silent_s is None


def test_a_run_that_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_log(tmp_path, [(9, 100.0, 3.0), (19, 120.0, 2.5)], rest='{"step": 29, "val')
    (tmp_path / "config.yaml").write_text("optimizer: {total_steps: 120}\n")
    monkeypatch.setattr(time, "time", lambda: 120.0)
    RankStatus(tmp_path, 0).write(20, "training")
    found = read_progress(tmp_path, now=125.0)
    assert (found.phase, found.step, found.loss, found.samples_per_s) == ("training", 20, 2.5, 4.0)
    assert found.eta_s == pytest.approx(100 * 2.0), "ten steps took twenty seconds, and a hundred are left"
    assert found.silent_s == 5.0


def test_a_line_of_an_evaluation_is_no_line_of_training(tmp_path: Path) -> None:
    write_log(tmp_path, [(9, 100.0, 3.0), (19, 120.0, 2.5)])
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"step": 19, "time": 121.0, "values": {"evaluation": 31.0}}\n')
    found = read_progress(tmp_path, now=125.0)
    assert (found.step, found.loss, found.usual_silence_s) == (20, 2.5, 20.0)


def test_a_run_that_trains_nothing(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("optimizer: {total_steps: 1}\nfinetune: {epochs: 0}\n")
    assert read_progress(tmp_path).total_steps == 0


def test_a_run_that_is_done(tmp_path: Path) -> None:
    write_log(tmp_path, [(9, 100.0, 3.0), (19, 120.0, 2.5)])
    (tmp_path / "done.json").write_text(json.dumps({"step": 20, "seconds": 40, "time": 121.0}))
    found = read_progress(tmp_path)
    assert (found.phase, found.step, found.is_done, found.eta_s) == ("done", 20, True, None)


def test_only_the_end_of_a_long_log_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_log(tmp_path, [(step, float(step), 1.0) for step in range(100)])
    monkeypatch.setattr("cclm.run.progress.TAIL_BYTES", 250)
    found = read_progress(tmp_path)
    assert found.step == 100


@pytest.mark.parametrize(
    ("data_s", "ratio", "late_s", "words"),
    [
        (0.5, 1.8, 0.01, ["rank 3 on {host}: 1.8 x the median in data (25% of a step)"]),
        (0.5, 1.4, 0.0, []),
        (0.05, 9.0, 0.0, []),
        (0.5, 1e6, 0.2, [
            "rank 3 on {host}: in data, where others hardly wait (25% of a step)",
            "rank 1: 0.2 s behind the median at the next step, not for data (10% of a step)",
        ]),
    ],
)  # fmt: skip
def test_ranks_that_keep_the_others_waiting_are_named_with_their_host(
    data_s: float, ratio: float, late_s: float, words: list[str], tmp_path: Path
) -> None:
    RankStatus(tmp_path, 3).write(20, "training")
    values = {
        "speed/step_s": 2.0,
        "speed/data_slowest_rank": 3.0,
        "speed/data_slowest_s": data_s,
        "speed/late_s": late_s,
    }
    values |= {"speed/data_slowest_ratio": ratio, "speed/late_rank": 1.0}
    expected = [text.format(host=socket.gethostname()) for text in words]
    assert list(slow_ranks(tmp_path, values)) == expected
    line = {"step": 19, "time": 100.0, "values": values}
    (tmp_path / "log.jsonl").write_text(json.dumps(line) + "\n")
    assert list(read_progress(tmp_path).slow_ranks) == expected
    assert list(slow_ranks(tmp_path, {})) == list(slow_ranks(tmp_path, {"speed/step_s": 2.0})) == []


BROKEN = ['{"step": 3, "time"', "\0\0\0", "[]", '{"step": "x", "time": 1, "values": {}}', '{"step": 3, "time": 1}', ""]


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_line_hides_no_other(tmp_path: Path, broken: str) -> None:
    write_log(tmp_path, [(9, 100.0, 3.0)])
    log = tmp_path / "log.jsonl"
    first = log.read_text()
    write_log(tmp_path, [(19, 120.0, 2.5)])
    log.write_text(first + broken + "\n" + log.read_text())
    found = read_progress(tmp_path)
    assert (found.step, found.loss, found.usual_silence_s) == (20, 2.5, 20.0)
    assert found.notes == ("1 line(s) of log.jsonl cannot be read",)
    assert last_values(tmp_path)["loss"] == 2.5


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    write_log(tmp_path, [(9, 100.0, 3.0)])
    (tmp_path / "config.yaml").write_text("a: [")
    (tmp_path / "done.json").write_text("{")
    (tmp_path / "status").mkdir()
    (tmp_path / "status/rank_0.json").write_text("{")
    found = read_progress(tmp_path)
    assert (found.step, found.is_done, found.total_steps, found.silent_s) == (10, False, None, None)
    assert [name for name in ("rank_0.json", "config.yaml", "done.json") if name in " ".join(found.notes)] == [
        "rank_0.json", "config.yaml", "done.json"
    ]  # fmt: skip


def test_why_rank_0_ended(tmp_path: Path) -> None:
    RankStatus(tmp_path, 0).write(20, "training")
    assert read_progress(tmp_path).end is None
    note_end(tmp_path, 0, Cause.DIVERGED, "the loss is not finite")
    end = read_progress(tmp_path).end
    assert end is not None
    assert (end.cause, end.step) == (Cause.DIVERGED, 20)
