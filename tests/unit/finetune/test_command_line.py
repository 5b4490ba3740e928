"""What stands behind `python -m finetune`, and what a model to start from gives to a recipe."""

from __future__ import annotations

import errno
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cclm.config import FineTuneConfig, RunConfig
from cclm.errors import Cause, ConfigError
from cclm.files.node import node_of, plain
from cclm.files.reading import to_yaml
from cclm.files.shipped import CHECKOUT
from cclm.model.options import ModelOptions
from cclm.pretrained.families import FAMILIES
from cclm.recipe.epochs import with_epochs
from cclm.recipe.read import read_recipe
from cclm.recipe.start import with_start
from cclm.run.causes import EXIT_CODES
from finetune.__main__ import PROGRAM, evaluation, main, with_recipe
from finetune.tasks.table import TASKS
from tests.tiny_config import run_config


def test_short_words_stand_for_keys() -> None:
    words = ["xvnli", "--checkpoint", "runs/my run", "--data=there", "--seed", "3"]
    expected = ["--recipe", "xvnli", "--start.sources", '["runs/my run"]', "--views.classify.folder", "there"]
    assert with_recipe(words) == [*expected, "--seed", "3"]
    assert with_recipe(["--recipe", "r.yaml"]) == ["--recipe", "r.yaml"]
    assert with_recipe(["retrieval", "--data", "x"]) == ["--recipe", "retrieval", "--finetune.data", "x"]


def test_an_unknown_task_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["xnvli"]) != 0
    assert "xvnli" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (OSError(errno.ENOSPC, "No space left on device", "table.md"), EXIT_CODES[Cause.DISK_FULL], "table.md: "),
    ],
)
def test_small_commands_end_with_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException, code: int, words: str
) -> None:
    def fail(*arguments: Any) -> None:
        raise error

    monkeypatch.setattr("finetune.commands.results_in", fail)
    assert main(["table", "runs/xvnli"]) == code
    told = capsys.readouterr().err
    assert words in told and "Traceback" not in told


@pytest.mark.slow
@pytest.mark.parametrize("task", list(TASKS))
def test_every_task_has_a_recipe_that_fits_the_published_models(task: str, tmp_path: Path) -> None:
    assert (PROGRAM.recipes / f"{task}.yaml").is_file()
    for name in ("cclm-3m", "cclm-x2vlm-base"):
        source = tmp_path / name
        source.mkdir()
        options = FAMILIES[name]
        config = config_from(task, source, replace(run_config(), model=options))
        assert config.finetune is not None and config.finetune.task == task
        assert not config.model.masked_lm_head and config.model.box_head is (task == "refcoco")
        assert config.model.vision.image_size == 384
        if task == "vqa":  # whose test split has no published answers
            assert list(config.views["answer"].test) == ["en/val2014"]  # type: ignore[attr-defined]
        if options.vision.architecture == "swin":
            assert config.model.vision.window == 12
        assert config.views[TASKS[task].view].transform.size == 384  # type: ignore[attr-defined]


def config_from(task: str, source: Path, run: RunConfig) -> RunConfig:
    """The recipe's configuration when it starts from a run with this one."""
    (source / "config.yaml").write_text(to_yaml(run), encoding="utf-8")
    return read_recipe(with_recipe([task, "--checkpoint", str(source)]), PROGRAM.recipes)


def test_a_task_that_reads_another_view_is_refused(tmp_path: Path) -> None:
    config = config_from("marvl", tmp_path, replace(run_config(), model=FAMILIES["cclm-3m"]))
    assert config.finetune is not None
    with pytest.raises(ConfigError) as caught:
        evaluation(replace(config, finetune=replace(config.finetune, task="refcoco")))
    assert caught.value.where == "finetune.task"


def test_the_documented_command_measures_xgqas_model_as_cvqa(tmp_path: Path) -> None:
    """Under its own name and in a folder of its own: its languages are none of xGQA's."""
    config = config_from("xgqa", tmp_path, replace(run_config(), model=FAMILIES["cclm-3m"]))
    (tmp_path / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    page = (CHECKOUT / "docs" / "benchmarks.md").read_text(encoding="utf-8").partition("### CVQA")[2]
    found = re.search(r"`python -m finetune (measure runs/xgqa [^`]*)`", page)
    assert found is not None
    words = shlex.split(found[1].replace("runs/xgqa", str(tmp_path)))
    measured = with_epochs(read_recipe(with_recipe(words), PROGRAM.recipes))
    assert measured.finetune is not None and measured.steps == 0
    assert (measured.finetune.task, measured.finetune.benchmark) == ("xgqa", "cvqa")
    assert measured.run_folder == str(tmp_path / "measured" / "cvqa")
    assert list(measured.views["answer"].test) == ["br"]  # type: ignore[attr-defined]


def test_a_recipe_without_fine_tuning_is_left_alone() -> None:
    root = node_of({"start": {"sources": ["x"]}, "model": {"width": 8}}, "here")
    assert with_start(root, lambda folder: run_config()) is root


def test_what_the_recipe_says_stands_over_what_the_model_says(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").touch()
    given = {
        "finetune": {"epochs": 2},
        "start": {"sources": ["elsewhere", str(tmp_path)]},
        "views": {"classify": {"images_per_row": 2}},
        "model": {"num_classes": 5},
    }
    run = replace(run_config(), model=ModelOptions(width=64, box_head=True))
    found = plain(with_start(node_of(given, "here"), lambda folder: run))
    assert found["model"]["width"] == 64 and not found["model"]["box_head"]
    assert (found["model"]["num_classes"], found["model"]["class_images"]) == (5, 2)
    assert found["data"]["tokenizer"] == "sets/tokenizer"
    assert found["views"]["classify"]["transform"]["size"] == 32
    assert found["optimizer"] == {"total_steps": 1}


@pytest.mark.parametrize(("is_fine_tuned", "protocol"), [(False, "no-fine-tuning"), (True, "zero-shot")])
def test_no_epochs_need_no_training_data(tmp_path: Path, is_fine_tuned: bool, protocol: str) -> None:
    finetune = FineTuneConfig(task="retrieval", protocol="zero-shot") if is_fine_tuned else None
    run = replace(run_config(), model=FAMILIES["cclm-3m"], finetune=finetune)
    (tmp_path / "config.yaml").write_text(to_yaml(run), encoding="utf-8")
    words = ["retrieval", "--checkpoint", str(tmp_path), "--data", "there", "--finetune.epochs", "0"]
    config = with_epochs(read_recipe(with_recipe(words), PROGRAM.recipes))
    assert config.steps == 0 and not config.views["image_text"].sources
    assert config.finetune is not None
    assert (config.finetune.protocol, config.finetune.data) == (protocol, "there")
    assert not config.finetune.dev_sets and list(config.finetune.test_sets) == ["xflickrco"]


def test_a_run_that_trains_is_not_called_one_without(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(to_yaml(replace(run_config(), model=FAMILIES["cclm-3m"])), encoding="utf-8")
    words = ["retrieval", "--checkpoint", str(tmp_path), "--finetune.protocol", "no-fine-tuning"]
    with pytest.raises(ConfigError) as caught:
        read_recipe(with_recipe(words), PROGRAM.recipes)
    assert [problem.key for problem in caught.value.problems] == ["finetune.protocol"]


@pytest.mark.parametrize("program", ["pretrain", "finetune"])
def test_the_other_programs_configuration_is_refused(program: str, tmp_path: Path) -> None:
    from cclm.run.launcher import Place
    from cclm.train.program import checked_config
    from pretrain.__main__ import PROGRAM as PRETRAIN
    from tests.tiny_finetune import alone, stand_in, write_tokenizer
    from tests.tiny_run import recipe, write_corpus, write_recipe

    if program == "pretrain":
        write_tokenizer(tmp_path)
        settings = alone(stand_in("xvnli", tmp_path / "data"), tmp_path)
    else:
        settings = recipe(write_corpus(tmp_path / "corpus"), tmp_path / "run")
    path = write_recipe(tmp_path / "recipe.yaml", settings)
    with pytest.raises(ConfigError) as caught:
        checked_config(["--recipe", str(path)], PRETRAIN if program == "pretrain" else PROGRAM, Place())
    assert caught.value.where == "finetune"


def test_a_login_node_needs_no_torch() -> None:
    code = (
        "import sys, finetune.__main__ as program, cclm.recipe.check, cclm.recipe.epochs, cclm.train.program\n"
        "sys.exit(sorted({'torch', 'transformers', 'deepspeed'} & set(sys.modules)) != [])"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_help_lists_the_tasks(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    told = capsys.readouterr().out
    assert all(name in told and task.title in told for name, task in TASKS.items())
    assert "--finetune.epochs" in told and "--views.answer.top_k" in told
