from __future__ import annotations

import json
from pathlib import Path

import pytest

from launch.__main__ import main
from launch.commands.run import number_or_auto


def test_plan_prints_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--ranks", "2", "--port", "4000", "--", "python", "-m", "pretrain"]) == 0
    text = capsys.readouterr().out
    assert "2 rank(s)" in text
    assert "MASTER_PORT=4000" in text


def test_plan_prints_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    options = ["--json", "--ranks", "3", "--threads-per-rank", "2", "--bind", "none", "--run-folder", str(tmp_path)]
    assert main(["plan", *options, "--", "true", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["threads_per_rank"] == 2
    assert content["run_folder"] == str(tmp_path)
    assert [rank["command"] for rank in content["ranks"]] == [["true", "--json"]] * 3
    assert [rank["cores"] for rank in content["ranks"]] == [[], [], []]


def test_run_gives_the_ranks_code(tmp_path: Path) -> None:
    options = ["--ranks", "1", "--run-folder", str(tmp_path)]
    assert main(["run", *options, "--", "python", "-S", "-c", "import sys; sys.exit(7)"]) == 7


def test_a_forgotten_command_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--ranks", "2"]) == 2
    assert capsys.readouterr().err.startswith("launch: expected a command after `--`, got none.")


@pytest.mark.parametrize(("text", "number"), [("auto", None), ("4", 4)])
def test_number_or_auto(text: str, number: int | None) -> None:
    assert number_or_auto(text) == number


def test_doctor_reports(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["doctor", "--folder", str(tmp_path / "not" / "yet")]) == 0
    text = capsys.readouterr().out
    assert f"{tmp_path} is writable" in text
    assert "torch" in text


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["status", "--jsn"], "python -m launch status: error: unrecognized arguments: --jsn (did you mean --json?)"),
        (["resume", "x", "y"], "python -m launch resume: error: unrecognized arguments: y\n"),
    ],
)
def test_a_typo_in_an_option(capsys: pytest.CaptureFixture[str], words: list[str], sentence: str) -> None:
    with pytest.raises(SystemExit):
        main(words)
    assert sentence in capsys.readouterr().err
