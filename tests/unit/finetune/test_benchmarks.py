"""Every retrieval benchmark by its name: drawn, checked, trained from its published files and measured in languages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cclm.annotations.check import check_folder
from cclm.evaluate.results import ResultStore, derive
from cclm.files.reading import to_yaml
from cclm.run.checkpoints import pinned
from finetune.__main__ import main
from finetune.tasks.table import TASKS
from tests.tiny_finetune import alone, stand_in, write_tokenizer

LANGUAGES = {
    "xflickrco": {"en", "de", "es"},
    "wit": {"en", "bg", "id"},
    "multi30k": {"en", "de", "fr"},
    "mscoco": {"en", "zh"},
    "xtd10": {"de", "ko"},
    "xm3600": {"en", "bn", "sw"},
}
"""What stand-in data are tested in."""


def tiny(folder: Path) -> Path:
    """A recipe behind the shipped one, for a network without a model to start from."""
    write_tokenizer(folder)
    settings = alone(folder, folder)
    own: dict[str, Any] = {name: settings[name] for name in ("device", "data", "track")}
    own["model"] = {**settings["model"], "num_classes": 0, "pretraining_heads": True, "projection_width": 8}
    own |= {"engine": "plain", "precision": "fp32", "optimizer": {"learning_rate": 0.002}}
    own["finetune"] = {"epochs": 2, "first_evaluation": 1, "evaluation_batch": 4, "rerank_top_k": 3}
    view = {"batch_size": 6, "negative_group": 6, "matching_rows": 6, "max_tokens": 8, "max_words": 8}
    own["views"] = {"retrieve": {**view, "transform": {"method": "affine", "size": 16, "randaugment": None}}}
    (folder / "tiny.yaml").write_text(to_yaml(own), encoding="utf-8")
    return folder / "tiny.yaml"


def test_every_benchmark_of_retrieval_is_drawn_here() -> None:
    assert set(LANGUAGES) == {name for name, task in TASKS.items() if task.view == "retrieve"}


@pytest.mark.parametrize("task", list(LANGUAGES))
def test_a_data_check_recognises_what_is_drawn(tmp_path: Path, task: str) -> None:
    """Whatever zero-shot needs of its languages is there, under the names that are published."""
    data = stand_in(task, tmp_path / "data")
    report = check_folder(task, data, [data / "images"])
    assert not report.problems and not report.unrecognised
    assert not any(one.missing_images for one in report.files)
    lacking = {(one.split, language) for one in report.missing if one.is_needed for language in one.languages}
    if task == "multi30k":  # whose English and German translations are read by nobody where there are descriptions
        lacking = {one for one in lacking if one[0][-1].isdigit() or one == ("test_2016_flickr", "fr")}
    assert not {language for _, language in lacking} & LANGUAGES[task]
    assert not {split for split, _ in lacking} & {"train", "val"}, "what is trained on, in English"


@pytest.mark.slow
@pytest.mark.parametrize("task", list(LANGUAGES))
def test_it_is_trained_and_measured_by_one_command(tmp_path: Path, task: str) -> None:
    data, run = stand_in(task, tmp_path / "data"), tmp_path / "run"
    words = [task, "--recipe", str(tiny(tmp_path)), "--data", str(data), "--run_folder", str(run)]
    assert main(words) == 0
    results = ResultStore(run / "results.jsonl").read()
    assert {one.language for one in results} == LANGUAGES[task]
    assert {(one.task, one.protocol, one.selected_on, one.model) for one in results} == {
        (task, "zero-shot", "dev", "run")
    }
    assert {one.checkpoint for one in results} == {str(pinned(run))}
    assert {one.reranked for one in results} == {0, 3}
    for one in results:
        assert one.num_rows == (30 if task == "multi30k" and one.language != "fr" and one.metric[0] != "i" else 6)
        assert derive(one, run) == one.value


@pytest.mark.slow
def test_few_shots_of_a_language_are_chosen_on_english_and_measured_in_it(tmp_path: Path) -> None:
    data, run, recipe = stand_in("xflickrco", tmp_path / "data"), tmp_path / "run", str(tiny(tmp_path))
    words = ["xflickrco", "--recipe", "few_shot", "--recipe", recipe, "--data", str(data), "--run_folder", str(run)]
    words += ["--finetune.shots", "5", "--finetune.test_languages", "[de]", "--finetune.evaluate_every", "1"]
    source = '{de: {path: "xFlickrCO/annotations/de/train_{shots}.jsonl"}}'
    assert main([*words, "--views.retrieve.sources", source]) == 0
    results = ResultStore(run / "results.jsonl").read()
    assert {(one.language, one.protocol, one.shots) for one in results} == {("de", "few-shot", "5")}
    assert main(["measure", str(run), "--finetune.test_languages", "[fi]"]) != 0
