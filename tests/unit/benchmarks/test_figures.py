from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import pytest

from benchmarks import data_loader
from benchmarks.figures import add_json_option, write_figures

BENCHMARKS = Path(data_loader.__file__).parent
COMMANDS = [path for path in sorted(BENCHMARKS.glob("*.py")) if "def main(" in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("path", COMMANDS, ids=[path.stem for path in COMMANDS])
def test_every_benchmark_takes_json_and_says_so(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert "add_json_option(parser)" in text and "write_figures(" in text
    assert "--json PATH" in text.split('"""')[1]


def test_without_a_path_nothing_is_written(tmp_path: Path) -> None:
    write_figures(None, {"a": 1.5})
    write_figures(tmp_path / "figures.json", {"b": 2, "a": 1.5})
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]
    assert json.loads((tmp_path / "figures.json").read_text()) == {"a": 1.5, "b": 2}


def test_without_a_name_they_are_the_last_line(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    add_json_option(parser)
    assert parser.parse_args([]).json is None
    write_figures(parser.parse_args(["--json"]).json, {"b": 2, "a": 1.5})
    assert capsys.readouterr().out == '{"a": 1.5, "b": 2}\n'


@pytest.mark.slow
def test_the_loaders_table_for_programs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["data_loader", "--seconds", "0.01", "--json", str(tmp_path / "figures.json")])
    data_loader.main()
    figures = json.loads((tmp_path / "figures.json").read_text())
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert len(rows) == 3
    for name, first, later in rows:
        assert figures[f"{name}_first_pass_ms"] == pytest.approx(float(first), abs=0.06)
        assert figures[f"{name}_in_memory_ms"] == pytest.approx(float(later), abs=0.06)
