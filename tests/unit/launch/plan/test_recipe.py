from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from cclm.errors import ConfigError
from cclm.recipe import check
from launch.__main__ import main
from launch.plan import recipe as recipe_module
from launch.plan.recipe import (
    find_recipe,
    folders_read,
    merge_recipe,
    program_of,
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


def test_a_recipe_behind_another_wins_key_by_key(checkout: Path) -> None:
    folder = checkout / "pretrain" / "recipes"
    behind = {"seed": 5, "optimizer": {"total_steps": 7, "betas": [0.9, 0.99]}, "start": {}}
    (folder / "behind.yaml").write_text(yaml.safe_dump(behind))
    before = recipe_of(["python", "-m", "pretrain", "--recipe", "small"], 2)
    words = "python -m pretrain --recipe small --optimizer.total_steps 9 --recipe behind"
    found = recipe_of(words.split(), 2)
    assert before is not None and found is not None and found[1] == before[1]
    optimizer = {**before[0].get("optimizer", {}), "total_steps": 9, "betas": [0.9, 0.99]}
    assert found[0] == {**before[0], "seed": 5, "optimizer": optimizer, "start": {}}


def test_a_command_line_with_a_wrong_one(checkout: Path) -> None:
    with pytest.raises(ConfigError, match="one of small, got 'smal'"):
        recipe_of(["python", "-m", "pretrain", "--recipe", "smal"], 2)


def test_run_folders_are_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somebody")
    monkeypatch.setenv("SCRATCH", "/fast")
    assert run_folder_of({"run_folder": "~/runs/a"}) == Path("/somebody/runs/a")
    assert run_folder_of({"run_folder": "$SCRATCH/a"}) == Path("/fast/a")
    assert run_folder_of({}) is None


@pytest.fixture
def finetuning(checkout: Path) -> Path:
    """The same with a recipe that fine-tunes."""
    (checkout / "finetune/recipes").mkdir(parents=True)
    content = {"run_folder": "runs/task", "finetune": {"task": "t"}, "views": {"classify": {"batch_size": 2}}}
    (checkout / "finetune/recipes/task.yaml").write_text(yaml.safe_dump(content))
    return checkout


@pytest.mark.parametrize(
    "words",
    [
        "python -m finetune task --checkpoint runs/my --data=there --seed 3",
        "python -m finetune --recipe task --start.sources [runs/my] --views.classify.folder there --seed 3",
    ],
)
def test_fine_tuning_has_short_words(finetuning: Path, monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    monkeypatch.setattr(recipe_module, "check_recipe", lambda *arguments, **options: None)
    found = recipe_of(words.split(), 2)
    assert found is not None
    content = found[0]
    assert content["start"] == {"sources": ["runs/my"]} and content["seed"] == 3
    assert content["views"] == {"classify": {"batch_size": 2, "folder": "there"}}
    assert run_folder_of(content) == finetuning / "runs/task"


@pytest.mark.parametrize(("name", "program"), [("small", "pretrain"), ("task", "finetune")])
def test_a_job_runs_the_program_of_its_recipe(
    finetuning: Path, capsys: pytest.CaptureFixture[str], name: str, program: str
) -> None:
    assert main(["plan", name, "--nodes", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["command"][1:3] == ["-m", program]


def test_what_a_fine_tuning_recipe_lacks_is_said_before_it_is_queued(
    finetuning: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "check_recipe", REAL_CHECK)
    with pytest.raises(ConfigError) as caught:
        read_recipe("task", ["--data", "there"], 2)
    assert {"views.classify.sources", "finetune.protocol"} <= {problem.key for problem in caught.value.problems}


@pytest.mark.parametrize("words", ["measure RUN", "python -m finetune measure RUN"])
def test_a_fine_tuned_run_is_measured_by_a_job(checkout: Path, words: str) -> None:
    """`submit measure -- RUN …` and `run -- python -m finetune measure RUN …`."""
    run = checkout / "runs" / "xvnli"
    run.mkdir(parents=True)
    content = {"run_folder": str(run), "finetune": {"task": "xvnli", "protocol": "zero-shot"}, "seed": 3}
    (run / "config.yaml").write_text(yaml.safe_dump({**content, "start": {"sources": ["base"]}}))
    given = [*words.replace("RUN", str(run)).split(), "--finetune.protocol", "translate-test"]
    found = read_recipe(given[0], given[1:], 2) if given[0] == "measure" else recipe_of(given, 2)
    assert found is not None and found[1] == run / "config.yaml"
    assert run_folder_of(found[0]) == run / "measured" / "translate-test" and program_of(found[0]) == "finetune"
    assert (found[0]["start"]["sources"], found[0]["finetune"]["epochs"], found[0]["seed"]) == ([str(run)], 0, 3)
    with pytest.raises(ConfigError) as caught:
        read_recipe("measure", ["runs/nowhere"], 2)
    assert caught.value.where == "measure"
