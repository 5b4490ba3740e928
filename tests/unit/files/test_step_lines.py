from __future__ import annotations

from pathlib import Path

import pytest

from cclm.data.counts import Quarantine
from cclm.data.ledger import LedgerFile
from cclm.files import lines
from cclm.files.lines import StepLines


def steps(lines: StepLines) -> list[int]:
    return [line["step"] for line in lines.read()]


def test_lines_come_back(tmp_path: Path) -> None:
    lines = StepLines(tmp_path / "a.jsonl")
    assert lines.last() is None and steps(lines) == []
    lines.append(0, {"word": "héé\n"})
    lines.append(2, {"word": "\ud800"})
    assert next(lines.read()) == {"step": 0, "word": "héé\n"}
    assert steps(lines) == [0, 2]
    last = lines.last()
    assert last is not None and last["step"] == 2


@pytest.mark.parametrize(("step", "kept"), [(0, []), (1, [0]), (2, [0, 1, 1]), (9, [0, 1, 1, 3])])
def test_cutting_keeps_the_steps_before(tmp_path: Path, step: int, kept: list[int]) -> None:
    lines = StepLines(tmp_path / "a.jsonl")
    for number in (0, 1, 1, 3):
        lines.append(number, {})
    lines.truncate(step)
    assert steps(lines) == kept
    lines.append(step, {})
    assert steps(lines) == [*kept, step]


@pytest.mark.parametrize("rest", ['{"step": 1', "nonsense\n", '{"no": 1}\n', "[1]\n", '{"step": "1"}\n'])
def test_a_broken_end_is_left_out_and_cut_off(tmp_path: Path, rest: str) -> None:
    lines = StepLines(tmp_path / "a.jsonl")
    lines.append(0, {})
    with lines.path.open("a") as stream:
        stream.write(rest)
    assert steps(lines) == [0]
    lines.truncate(100)
    lines.append(1, {})
    assert steps(lines) == [0, 1]


def test_cutting_a_file_that_is_not_there_is_nothing(tmp_path: Path) -> None:
    StepLines(tmp_path / "a.jsonl").truncate(3)
    assert not (tmp_path / "a.jsonl").exists()


@pytest.mark.parametrize("kind", [StepLines, LedgerFile, Quarantine])
def test_sync_forces_file_and_name_to_disk(
    kind: type[StepLines | LedgerFile | Quarantine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(lines, "sync", synced.append)
    path = tmp_path / "a.jsonl"
    kind(path).sync()
    assert synced == []  # a run without bad samples has no quarantine
    file = kind(path)
    path.touch()
    file.sync()
    assert synced == [path, tmp_path]
