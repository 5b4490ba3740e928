from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from cclm.errors import ConfigError
from cclm.recipe import check
from launch.plan import recipe as recipe_module
from launch.plan.recipe import (
    find_recipe,
    folders_read,
    merge_recipe,
    read_recipe,
    recipe_of,
    run_folder_of,
    write_recipe,
)

REAL_CHECK = check.check_recipe


def test_overrides_are_merged_into_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text("run_folder: r\noptimizer: {total_steps: 5}\n")
    recipe = find_recipe("small", tmp_path)
    content = merge_recipe(recipe, ["--optimizer.total_steps", "9", "--data.tokenizer=t", "--model.x", "[1, 2]"])
    path = write_recipe(tmp_path / "run", content, recipe)
    assert yaml.safe_load(path.read_text()) == {
        "run_folder": "r",
        "optimizer": {"total_steps": 9},
        "data": {"tokenizer": "t"},
        "model": {"x": [1, 2]},
    }


@pytest.mark.parametrize("words", [["--a"], ["a", "1"], ["--run_folder.x", "1"]])
def test_overrides_that_are_none(tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "small.yaml").write_text("run_folder: r\n")
    with pytest.raises(ConfigError):
        merge_recipe(tmp_path / "small.yaml", words)


def test_broken_yaml_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text("run_folder: [r")
    with pytest.raises(ConfigError, match=r"small\.yaml: expected a YAML mapping, got line 2: broken YAML"):
        merge_recipe(tmp_path / "small.yaml", ())
    (tmp_path / "small.yaml").write_text("run_folder: r")
    with pytest.raises(ConfigError, match=r"--model\.x: expected a value in YAML, got broken YAML"):
        merge_recipe(tmp_path / "small.yaml", ["--model.x", "[1"])


def test_a_recipe_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text("")
    with pytest.raises(ConfigError, match="one of small, got 'smal'"):
        find_recipe("smal", tmp_path)


def test_folders_that_a_recipe_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("images", "pairs", "words"):
        (tmp_path / name).mkdir()
    sources = {"a": {"path": "images", "weight": 2}, "b": {"path": "absent"}, "c": {"path": "$PAIRS"}}
    recipe = {"data": {"tokenizer": "words"}, "views": {"image_text": {"sources": sources}}, "run_folder": "pairs/run"}
    monkeypatch.setenv("PAIRS", str(tmp_path / "pairs"))
    assert folders_read(recipe, tmp_path) == tuple(str(tmp_path / name) for name in ("images", "pairs", "words"))


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with one shipped recipe."""
    (tmp_path / "pretrain/recipes").mkdir(parents=True)
    (tmp_path / "pretrain/recipes/small.yaml").write_text("run_folder: runs/small\nseed: 1\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_recipe_is_checked_in_one_place(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, list[str], int, bool]] = []

    def look(path: Path, overrides: Sequence[str], size: int, *, files_exist: bool) -> None:
        seen.append((path.name, [*overrides], size, files_exist))

    monkeypatch.setattr(recipe_module, "check_recipe", look)
    assert read_recipe("small", ["--seed", "2"], 16)[0]["seed"] == 2
    read_recipe("small", [], 16, files_exist=False)
    assert seen == [("small.yaml", ["--seed", "2"], 16, True), ("small.yaml", [], 16, False)]


def test_a_recipe_that_cannot_work_is_refused_before_anything_is_queued(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "check_recipe", REAL_CHECK)
    with pytest.raises(ConfigError) as caught:
        read_recipe("small", ["--sead", "2"], 16)
    assert {problem.key for problem in caught.value.problems} == {"sead", "views", "data", "optimizer"}


@pytest.mark.parametrize(
    ("words", "run_folder"),
    [
        ("python -m pretrain --recipe small", "runs/small"),
        ("python -m pretrain --seed 3 --recipe=small --run_folder elsewhere", "elsewhere"),
        ("python -u -m pretrain --recipe small --run_folder=elsewhere", "elsewhere"),
    ],
)
def test_the_recipe_of_a_command_line(checkout: Path, words: str, run_folder: str) -> None:
    found = recipe_of(words.split(), 2)
    assert found is not None
    assert run_folder_of(found[0]) == checkout / run_folder


@pytest.mark.parametrize(
    "words", ["", "python train.py --recipe small", "python -m pretrain", "python -m pretrain --help", "python -m"]
)
def test_a_command_line_without_one(checkout: Path, words: str) -> None:
    assert recipe_of(words.split(), 2) is None


def test_a_command_line_with_a_wrong_one(checkout: Path) -> None:
    with pytest.raises(ConfigError, match="one of small, got 'smal'"):
        recipe_of(["python", "-m", "pretrain", "--recipe", "smal"], 2)


def test_run_folders_are_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somebody")
    monkeypatch.setenv("SCRATCH", "/fast")
    assert run_folder_of({"run_folder": "~/runs/a"}) == Path("/somebody/runs/a")
    assert run_folder_of({"run_folder": "$SCRATCH/a"}) == Path("/fast/a")
    assert run_folder_of({}) is None
