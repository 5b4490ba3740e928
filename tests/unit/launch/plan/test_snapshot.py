from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from cclm.errors import ConfigError
from launch.plan.snapshot import find_recipe, folders_named_in, merge_recipe, take_snapshot, write_recipe
from launch.slurm import preflight


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name, text in {"cclm/types.py": "A = 1\n", "pretrain/__pycache__/x.pyc": "", "pyproject.toml": ""}.items():
        (tmp_path / "checkout" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "checkout" / name).write_text(text)
    for name in ("data", "tests", ".git"):
        (tmp_path / "checkout" / name).mkdir()
    return tmp_path / "checkout"


def test_a_snapshot_holds_the_code_and_links_to_the_data(checkout: Path, tmp_path: Path) -> None:
    take_snapshot(checkout, tmp_path / "run")
    code = tmp_path / "run/code"
    assert {path.name for path in code.iterdir()} == {"cclm", "pretrain", "pyproject.toml", "data"}
    assert (code / "data").resolve() == checkout / "data"
    assert not list(code.rglob("*.pyc"))


def test_later_edits_do_not_reach_it_unless_asked_for(checkout: Path, tmp_path: Path) -> None:
    before = take_snapshot(checkout, tmp_path / "run")
    (checkout / "cclm/types.py").write_text("A = 2\n")
    assert take_snapshot(checkout, tmp_path / "run") == before
    assert (tmp_path / "run/code/cclm/types.py").read_text() == "A = 1\n"
    assert take_snapshot(checkout, tmp_path / "run", anew=True) != before
    assert (tmp_path / "run/code/cclm/types.py").read_text() == "A = 2\n"


def test_the_nodes_compute_the_same_hash(checkout: Path, tmp_path: Path) -> None:
    found = take_snapshot(checkout, tmp_path / "run")
    assert found == preflight.code_hash(tmp_path / "run/code")
    (tmp_path / "run/code/cclm/types.py").write_text("A = 3\n")
    assert preflight.code_hash(tmp_path / "run/code") != found


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
    with pytest.raises(ConfigError, match=r"small\.yaml: expected a YAML mapping, got broken YAML"):
        merge_recipe(tmp_path / "small.yaml", ())
    (tmp_path / "small.yaml").write_text("run_folder: r")
    with pytest.raises(ConfigError, match=r"--model\.x: expected a value in YAML, got '\[1'"):
        merge_recipe(tmp_path / "small.yaml", ["--model.x", "[1"])


def test_a_recipe_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text("")
    with pytest.raises(ConfigError, match="one of small, got 'smal'"):
        find_recipe("smal", tmp_path)


def test_folders_that_a_recipe_reads(tmp_path: Path) -> None:
    for name in ("images", "pairs"):
        (tmp_path / name).mkdir()
    data = {"image_text": {"shards": ["images", "absent"], "batch_size": 4}, "text_pair": {"shards": ["pairs"]}}
    assert folders_named_in(data, tmp_path) == [str(tmp_path / "images"), str(tmp_path / "pairs")]
