from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from cclm.errors import ConfigError
from cclm.run.status import DoneMarker
from launch.__main__ import main
from launch.plan.sweep import (
    Sweep,
    check_same_sweep,
    make_points,
    parse_axis,
    point_folder,
    points_not_done,
    read_sweep,
    write_sweep,
)


@pytest.mark.parametrize(
    ("word", "values"),
    [
        ("lr=1e-4,3e-4,1", [0.0001, 0.0003, 1]),
        ("name=a,b", ["a", "b"]),
        ("flag=true,false", [True, False]),
        ("channels=[8, 16],[16,32]", [[8, 16], [16, 32]]),
        ("text='a,b',c=d", ["a,b", "c=d"]),
        ("start=null", [None]),
    ],
)
def test_values_are_yaml(word: str, values: list[Any]) -> None:
    assert parse_axis(word) == (word.partition("=")[0], values)


def test_the_grid_is_the_product_with_the_last_key_fastest() -> None:
    assert make_points(["a.x=1,2", "b=u,v"], None) == (
        {"a.x": 1, "b": "u"}, {"a.x": 1, "b": "v"}, {"a.x": 2, "b": "u"}, {"a.x": 2, "b": "v"},
    )  # fmt: skip


def test_listed_points_times_the_grid(tmp_path: Path) -> None:
    path = tmp_path / "points.yaml"
    path.write_text("- {optimizer: {learning_rate: 1e-4, steps: 3}}\n- {model.width: 8}\n")
    listed = ({"optimizer.learning_rate": 0.0001, "optimizer.steps": 3}, {"model.width": 8})
    assert make_points([], path) == listed
    assert make_points(["seed=1,2"], path) == tuple({**point, "seed": seed} for point in listed for seed in (1, 2))


@pytest.mark.parametrize(
    ("vary", "text", "sentence"),
    [
        ([], None, "expected --vary KEY=VALUE,VALUE or --points FILE, got neither"),
        (["a"], None, "expected KEY=VALUE,VALUE with values in YAML, got 'a'"),
        (["a="], None, "got 'a='"),
        (["a=[1"], None, r"got 'a=\[1'"),
        (["a=1", "b=1", "a=2"], None, "expected each key once, got a"),
        (["run_folder=x,y"], None, "expected points without run_folder"),
        (["seed=1,1"], None, "expected points that differ, got seed=1 twice"),
        (["seed=1"], "- {a: 1, b: 2}\n- {b: 2, a: 1}", "expected points that differ, got b=2  a=1  seed=1 twice"),
        ([], "a: 1", "expected a list of mappings, got dict"),
        ([], "[]", "expected a list of mappings"),
        ([], "- 1", "expected a list of mappings"),
    ],
)
def test_mistakes_are_sentences(tmp_path: Path, vary: list[str], text: str | None, sentence: str) -> None:
    path = tmp_path / "points.yaml" if text is not None else None
    if path is not None:
        path.write_text(str(text))
    with pytest.raises(ConfigError, match=sentence):
        make_points(vary, path)


BASE = {"seed": 1, "optimizer": {"learning_rate": 0.1, "total_steps": 4}}


def sweep(*points: dict[str, Any], **base: Any) -> Sweep:
    return Sweep(recipe="small.yaml", base={**BASE, **base}, points=points)


def test_a_point_changes_only_what_it_names() -> None:
    asked = sweep({"optimizer.learning_rate": 0.2}, {"model.width": 8})
    assert asked.content(0) == {**BASE, "optimizer": {"learning_rate": 0.2, "total_steps": 4}}
    assert asked.content(1) == {**BASE, "model": {"width": 8}}
    with pytest.raises(ConfigError, match=r"--seed\.x: expected a mapping at seed, got a value"):
        sweep({"seed.x": 1}).content(0)


def test_the_same_sweep_and_another(tmp_path: Path) -> None:
    asked = sweep({"seed": 1}, {"seed": 2})
    check_same_sweep(tmp_path, asked)
    write_sweep(tmp_path, asked, ["sweep", "small"])
    assert json.loads((tmp_path / "sweep.json").read_text())["command"] == ["sweep", "small"]
    assert read_sweep(tmp_path) == asked
    check_same_sweep(tmp_path, asked)
    with pytest.raises(ConfigError, match=r"expected the sweep of sweep\.json, as before, got 3 other points"):
        check_same_sweep(tmp_path, sweep({"seed": 1}, {"seed": 2}, {"seed": 3}))
    with pytest.raises(ConfigError, match="got another recipe, or other overrides for all points"):
        check_same_sweep(tmp_path, sweep(*asked.points, precision="bf16"))


TRAIN = """
import json, os, sys, yaml
content = yaml.safe_load(open(sys.argv[sys.argv.index("--recipe") + 1]))
if content["seed"] == 2 and not os.path.exists("repaired"):
    sys.exit(3)
if content["seed"] == 3 and os.environ.get("STOPS"):
    sys.exit(75)
with open(content["run_folder"] + "/done.json", "w") as file:
    json.dump({"step": content["seed"], "seconds": 1.0, "time": 0.0}, file)
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout whose `pretrain` only notes that it is done."""
    (tmp_path / "pretrain").mkdir()
    (tmp_path / "pretrain/__init__.py").touch()
    (tmp_path / "pretrain/__main__.py").write_text(TRAIN)
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(BASE))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_points_run_here_one_after_another(
    here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A failing point does not stop the others; a request to stop does; the same command goes on."""
    words = ["sweep", "small.yaml", "--vary", "seed=1,2,3,4", "--local", "--run-folder", "runs/seeds"]
    run = here / "runs/seeds"
    assert main([*words, "--dry-run"]) == 0
    assert capfd.readouterr().out.splitlines() == [f"point {number}  seed={number + 1}" for number in range(4)]
    assert not run.exists()
    monkeypatch.setenv("STOPS", "1")
    assert main(words) == 75
    assert points_not_done(run, 4) == [1, 2, 3], "after the request no further point began"
    monkeypatch.delenv("STOPS")
    assert main(words) == 1
    assert points_not_done(run, 4) == [1]
    assert "launch: point(s) 1 failed; the same command tries them again" in capfd.readouterr().err
    (here / "repaired").touch()
    assert main(words) == 0
    assert [DoneMarker(point_folder(run, number)).read().step for number in range(4)] == [1, 2, 3, 4]  # type: ignore[union-attr]
    assert yaml.safe_load((run / "points/2/recipe.yaml").read_text()) == {
        **BASE, "seed": 3, "run_folder": str(run / "points/2"),
    }  # fmt: skip
