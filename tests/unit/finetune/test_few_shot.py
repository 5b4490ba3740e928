"""The shipped overlay for few-shot training, behind a task's recipe, goes on from a fine-tuned run."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from shutil import copy

import pytest

from cclm.config import FineTuneConfig
from cclm.errors import ConfigError
from cclm.evaluate.results import ResultStore
from cclm.files.reading import to_yaml
from cclm.pretrained.families import FAMILIES, finetuned
from cclm.recipe.read import read_recipe
from finetune.__main__ import PROGRAM, main, with_recipe
from tests.tiny_config import run_config
from tests.tiny_finetune import alone, stand_in, write_tokenizer


@pytest.mark.parametrize(("task", "view", "published"), [("xvnli", "classify", "xvnli"), ("xgqa", "answer", "vqa")])
def test_it_changes_what_few_shot_changes(tmp_path: Path, task: str, view: str, published: str) -> None:
    options = finetuned(FAMILIES["cclm-3m"], "xvnli" if published == "xvnli" else "vqa")
    (tmp_path / "config.yaml").write_text(to_yaml(replace(run_config(), model=options)), encoding="utf-8")
    words = [task, "--recipe", "few_shot", "--checkpoint", str(tmp_path), "--finetune.shots", "48"]
    words += [f"--views.{view}.sources", '{ar: {path: "train_{shots}"}}', "--views.classify.test", "{ar: test}"]
    words = [word.replace("views.classify", f"views.{view}") for word in words]
    config = read_recipe(with_recipe(words), PROGRAM.recipes)
    assert config.finetune is not None
    assert (config.finetune.task, config.finetune.protocol, config.finetune.shots) == (task, "few-shot", "48")
    assert (config.finetune.epochs, config.finetune.first_evaluation, config.optimizer.learning_rate) == (60, 10, 1e-6)
    assert list(config.views[view].sources) == ["ar"] == list(config.views[view].test)  # type: ignore[attr-defined]
    assert config.views[view].sources["ar"].path == "train_48"
    assert config.model == options


def test_the_command_line_that_measures_a_fine_tuned_run_starts_from_it_and_trains_nothing(tmp_path: Path) -> None:
    run = replace(run_config(), finetune=FineTuneConfig(task="xvnli", protocol="zero-shot", name="mine"))
    (tmp_path / "config.yaml").write_text(to_yaml(run), encoding="utf-8")
    words = with_recipe(["measure", str(tmp_path), "--data", "there", "--finetune.protocol", "translate-test"])
    told = dict(zip(words[::2], words[1::2], strict=True))
    assert told["--recipe"] == str(tmp_path / "config.yaml") and told["--start.sources"] == f'["{tmp_path}"]'
    assert (told["--finetune.epochs"], told["--finetune.name"]) == ("0", "mine")
    assert told["--run_folder"] == str(tmp_path / "measured" / "translate-test")
    assert {"--views.image_text.folder", "--finetune.data"} & set(told)
    words = with_recipe(["measure", str(tmp_path), "--finetune.protocol=few-shot"])
    assert words[words.index("--run_folder") + 1] == str(tmp_path / "measured" / "few-shot")
    for other in ("nowhere", "measure"):
        with pytest.raises(ConfigError):
            with_recipe(["measure", str(tmp_path / other)])


def test_all_languages_of_multi30k_are_one_pool(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(to_yaml(replace(run_config(), model=FAMILIES["cclm-3m"])), encoding="utf-8")
    words = ["multi30k", "--recipe", "multi30k_all", "--checkpoint", str(tmp_path)]
    config = read_recipe(with_recipe(words), PROGRAM.recipes)
    assert config.finetune is not None and config.finetune.protocol == "all-language"
    sources = list(config.views["retrieve"].ordered_sources)
    assert sources == ["cs", *(f"{language}/{n}" for language in ("de", "en") for n in range(1, 6)), "fr"]


@pytest.mark.slow
def test_translated_training_rows_mark_every_result(tmp_path: Path) -> None:
    """The shipped overlay: English and German rows are one pool; each result says translate-train."""
    write_tokenizer(tmp_path)
    data, settings = stand_in("xvnli", tmp_path / "data"), alone(tmp_path, tmp_path)
    copy(data / "annotations" / "de" / "test.jsonl", data / "annotations" / "de" / "train.jsonl")
    small = {name: settings[name] for name in ("device", "data", "track")} | {"engine": "plain", "precision": "fp32"}
    view = {"batch_size": 6, "max_tokens": 8, "transform": {"method": "affine", "size": 16, "randaugment": None}}
    small |= {"views": {"classify": view}, "finetune": {"epochs": 1}, "model": settings["model"]}
    (tmp_path / "small.yaml").write_text(to_yaml(small), encoding="utf-8")
    words = ["xvnli", "--recipe", "translate_train", "--recipe", str(tmp_path / "small.yaml"), "--data", str(data)]
    files = {
        part: f"{{en: annotations/en/{part}.jsonl, de: annotations/de/{part}.jsonl}}" for part in ("train", "test")
    }
    words += ["--views.classify.test", files["test"], "--run_folder", str(tmp_path / "run")]
    words += ["--views.classify.sources", re.sub(r"(\S+jsonl)", r"{path: \1}", files["train"])]
    assert main(words) == 0
    results = ResultStore(tmp_path / "run" / "results.jsonl").read()
    assert {(one.language, one.protocol) for one in results} == {("en", "translate-train"), ("de", "translate-train")}
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert log[-1]["step"] == 5, "36 rows, six at a time"
