"""`--seeds N`: the same run with N seeds, one after another."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from cclm.errors import ConfigError
from cclm.files.reading import to_yaml
from finetune import seeds
from finetune.__main__ import PROGRAM, main
from finetune.seeds import commands_of_seeds, run_seeds, take_numbers
from tests.tiny_finetune import alone, stand_in, write_tokenizer


def commands(*words: str, number: int = 2, ranks: int = 1) -> list[list[str]]:
    return [command for _, command in commands_of_seeds(words, PROGRAM.recipes, seeds=number, ranks=ranks)]


def test_the_numbers_are_taken_out_of_the_command_line() -> None:
    assert take_numbers(["--recipe", "x", "--seeds", "3", "--seed=7", "--ranks=2"]) == (
        {"seeds": 3, "ranks": 2}, ["--recipe", "x", "--seed=7"],
    )  # fmt: skip
    assert take_numbers(["--seed", "3"]) == ({}, ["--seed", "3"])
    for words in (["--seeds", "0"], ["--seeds", "three"], ["--seeds"], ["--ranks", "2"]):
        with pytest.raises(ConfigError):
            take_numbers(words)


def test_each_seed_has_a_folder_of_its_own() -> None:
    first, second = commands("--recipe", "xvnli", "--start.sources", '["runs/en/seed_{seed}"]', "--seed", "7")
    assert first == [
        "finetune", "--recipe", "xvnli", "--start.sources", '["runs/en/seed_7"]', "--seed", "7", "--seed", "7",
        "--run_folder", "runs/xvnli/seed_7",
    ]  # fmt: skip
    assert second[4] == '["runs/en/seed_8"]' and second[-1] == "runs/xvnli/seed_8"


def test_the_command_line_wins_over_the_recipes(tmp_path: Path) -> None:
    recipe = tmp_path / "own.yaml"
    recipe.write_text("run_folder: runs/own\nseed: 5\n")
    (command,) = commands('--run_folder="runs/mine"', "--recipe", str(recipe), number=1)
    assert command[-4:] == ["--seed", "5", "--run_folder", "runs/mine/seed_5"]
    assert commands("--recipe", str(recipe), number=1)[0][-1] == "runs/own/seed_5"
    recipe.write_text("seed: 5\n")
    with pytest.raises(ConfigError):
        commands("--recipe", str(recipe))


def test_an_option_without_a_value_takes_no_other_one() -> None:
    (command,) = commands("--recipe", "xvnli", "--print_config", "--run_folder", "runs/mine", number=1)
    assert command[1:4] == ["--recipe", "xvnli", "--print_config"]
    assert command[-4:] == ["--seed", "42", "--run_folder", "runs/mine/seed_42"]
    (command,) = commands("--recipe", "xvnli", "--seed", "--run_folder=runs/mine", number=1)
    assert command[1:4] == ["--recipe", "xvnli", "--seed"], "the program says that a value is missing"


@pytest.mark.parametrize("empty", [("--seed=", "--run_folder="), ("--seed", "", "--run_folder", "~")])
def test_an_empty_value_is_none(tmp_path: Path, empty: tuple[str, ...]) -> None:
    recipe = tmp_path / "own.yaml"
    recipe.write_text("run_folder: runs/own\nseed: 5\n")
    assert commands("--recipe", str(recipe), *empty, number=1)[0][-3::2] == ["5", "runs/own/seed_5"]
    assert commands("--recipe", str(recipe), "--seed", "0", number=1)[0][-1] == "runs/own/seed_0"


@pytest.mark.parametrize(
    ("words", "where"),
    [
        (("--seed", "[a"), "--seed"),
        (("--seed", "[1]"), "seed"),
        (("--seed", "one"), "seed"),
        (("--run_folder", "{a: 1, a: 2}"), "--run_folder"),
    ],
)
def test_what_is_no_seed_and_no_folder_is_refused(words: tuple[str, ...], where: str) -> None:
    with pytest.raises(ConfigError) as caught:
        commands("--recipe", "xvnli", *words)
    assert caught.value.where == where


def test_the_later_one_of_two_values_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tokenizer(tmp_path)
    recipe = tmp_path / "own.yaml"
    recipe.write_text(to_yaml(alone(stand_in("xvnli", tmp_path / "data"), tmp_path)), encoding="utf-8")
    words = ("--recipe", str(recipe), "--seed", "7", "--run_folder", "runs/a", "--print_config")
    assert main(commands(*words)[1][1:]) == 0
    shown = capsys.readouterr().out
    assert "seed: 8" in shown and "run_folder: runs/a/seed_8" in shown


def test_ranks_are_started_by_the_launcher() -> None:
    (command,) = commands("--recipe", "xvnli", number=1, ranks=2)
    folder = "runs/xvnli/seed_42"
    assert command[:7] == ["launch", "run", "--ranks", "2", "--run-folder", folder, "--"]
    assert command[7:10] == [sys.executable, "-m", "finetune"] and command[-1] == folder


def test_the_first_one_that_fails_ends_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    codes, seen = iter([0, 75, 0]), list[str]()

    def run(command: list[str]) -> int:
        seen.append(command[-1])
        return next(codes)

    monkeypatch.setattr(seeds, "_run", run)
    assert main(["--recipe", "xvnli", "--seeds", "3"]) == 75
    assert seen == ["runs/xvnli/seed_42", "runs/xvnli/seed_43"]
    assert "the same command goes on" in capsys.readouterr().err


def test_one_of_several_ranks_does_not_start_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "29500")
    with pytest.raises(ConfigError) as caught:
        run_seeds(["--recipe", "xvnli"], PROGRAM.recipes, seeds=2)
    assert caught.value.where == "--seeds"


def test_a_signal_reaches_the_run(tmp_path: Path) -> None:
    child = (
        "import pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n"
        f"pathlib.Path({str(tmp_path / 'ready')!r}).touch()\n"
        "time.sleep(600)\n"
    )
    code = f"import sys; from finetune.seeds import _run; sys.exit(_run([sys.executable, '-c', {child!r}]))"
    process = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(Path.cwd())})
    while not (tmp_path / "ready").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 75


def test_a_signal_that_comes_while_the_command_is_started_reaches_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def slowly(command: list[str]) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(command)
        signal.raise_signal(signal.SIGTERM)
        return process

    monkeypatch.setattr(seeds, "subprocess", SimpleNamespace(Popen=slowly))

    def nobody_listens(*_: object) -> None:
        raise AssertionError("it is lost")

    before = signal.signal(signal.SIGTERM, nobody_listens)
    try:
        assert seeds._run(["sleep", "60"]) == 128 + signal.SIGTERM
    finally:
        signal.signal(signal.SIGTERM, before)
