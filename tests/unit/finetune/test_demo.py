"""The fine-tuning demonstration: its data, its commands, its summary. What it trains is not run here."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from cclm.config import RunConfig
from cclm.files.reading import to_yaml
from cclm.recipe.read import read_recipe
from cclm.shardfile.reader import ShardSet
from cclm.types import ImageTextRecord
from cclm.views.annotated.options import ClassifyConfig
from cclm.views.annotated.rows import RowSet
from cclm.views.image_text.options import ImageViewConfig
from finetune.__main__ import PROGRAM
from finetune.demo import FEW_SHOT, plan, summary
from finetune.demo_data import ENGLISH, LANGUAGES, SHOTS, main, split_of
from finetune.seeds import commands_of_seeds, take_numbers
from finetune.stand_in import scene_bytes, write_image_set
from tests.tiny_config import run_config

NUM_CONCEPTS = 400


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data of a corpus of 400 things; the first two have one name in German."""
    images, to = tmp_path_factory.mktemp("images"), tmp_path_factory.mktemp("made")
    picture = scene_bytes([("red", "box")])
    for split, artist in {"train": "ann", "dev": "ben", "test": "cy"}.items():
        folder, languages = images / f"image-{split}", (ENGLISH,) if split == "train" else (ENGLISH, *LANGUAGES)
        records = []
        for number in range(NUM_CONCEPTS):
            names = {language: [f"{language} {number}"] for language in languages}
            names |= {"de": ["de 0"]} if number == 1 and "de" in names else {}
            record = ImageTextRecord(
                key=f"{artist}_{number}", image=picture, image_format="png", captions=names, source=artist,
                licence="CC0-1.0", identity=f"thing {number}",
            )  # fmt: skip
            records.append(record)
        write_image_set(folder, records)
    assert main([str(images), str(to)]) == 0
    return to


def rows_of(path: Path, language: str) -> dict[str, tuple[tuple[str, ...], str, int]]:
    return {row.id: (row.images, row.text, row.label) for row in RowSet(path, "statements", language).rows}  # type: ignore[union-attr,misc]


def number_of(name: str) -> str:
    return name.rpartition(" ")[2].rpartition("_")[2].removesuffix(".png")


@pytest.mark.slow
def test_statements_say_what_an_image_shows(made: Path) -> None:
    files = {"train": "nlvr2/annotations/train.jsonl", "dev": "nlvr2/annotations/dev.jsonl"}
    for split, name in {**files, "test": "marvl/zero_shot/annotations/marvl-en.jsonl"}.items():
        rows = rows_of(made / name, ENGLISH).values()
        assert len(rows) > 3
        for images, text, label in rows:
            shown = {number_of(image) for image in images}
            assert label == (number_of(text) in shown)
            assert {split_of(f"thing {number}") for number in (*shown, number_of(text))} == {split}
            assert all((made / "images" / image).is_file() for image in images)
        assert sum(label for _, _, label in rows) * 2 == len(rows)


def test_a_row_is_the_same_in_every_language(made: Path) -> None:
    folder = made / "marvl/zero_shot/annotations"
    english = rows_of(folder / "marvl-en.jsonl", ENGLISH)
    for language in LANGUAGES:
        other = rows_of(folder / f"marvl-{language}.jsonl", language)
        assert {name: (images, label) for name, (images, _, label) in other.items()} == {
            name: (images, label) for name, (images, _, label) in english.items()
        }
        assert all(text.startswith(language) for _, text, _ in other.values())


def test_few_shot_rows_are_of_training_concepts_and_of_no_two_languages(made: Path) -> None:
    seen = set[str]()
    for language in LANGUAGES:
        rows = rows_of(made / f"marvl/few_shot/annotations/marvl-{language}_train{SHOTS}.jsonl", language)
        shown = {image for images, _, _ in rows.values() for image in images}
        assert len(rows) == SHOTS
        assert shown and not shown & seen
        assert all(split_of(f"thing {number_of(image)}") == "train" for image in shown)
        seen |= shown
    few, test = (ShardSet(made / f"retrieval-{name}") for name in ("few_shot", "test"))
    assert (sum(few.samples_per_shard), sum(test.samples_per_shard)) == (SHOTS * len(LANGUAGES), NUM_CONCEPTS)
    assert sorted(few.languages) == list(LANGUAGES) and sorted(test.languages) == sorted((ENGLISH, *LANGUAGES))


def test_every_training_command_is_a_valid_configuration(tmp_path: Path) -> None:
    model = tmp_path / "demo"
    model.mkdir()
    (model / "config.yaml").write_text(to_yaml(run_config()), encoding="utf-8")
    stages = {stage.name: stage for stage in plan(Path("runs/x"), model, seeds=2)}
    configs = dict[str, list[RunConfig]]()
    for name in ("before", "retrieval", "retrieval few-shot", "statements", "statements few-shot"):
        words = shlex.split(stages[name].commands[0])
        numbers, words = take_numbers(words[words.index("finetune") + 1 :])
        if numbers:
            assert numbers == {"seeds": 2, "ranks": 2}
            words = next(commands_of_seeds(words, PROGRAM.recipes, seeds=1, ranks=1))[1][1:]
        if "few-shot" in name:  # what the stage before has trained
            assert "runs/x" in (before := words[words.index("--start.sources") + 1]) and "seed_42" in before
            words[words.index("--start.sources") + 1] = json.dumps([str(model)])
        configs[name] = [read_recipe(words, PROGRAM.recipes)]
    ((before,), (retrieval,), (few,), (statements,), (few_statements,)) = configs.values()
    assert before.steps == 0 and before.finetune == replace(retrieval.finetune, epochs=0)  # type: ignore[type-var]
    assert retrieval.run_folder == "runs/x/retrieval/seed_42" and retrieval.start.sources == (str(model),)
    for one in (few, few_statements):
        assert one.finetune is not None and one.finetune.protocol == "few-shot"
        assert one.finetune.name == "demo" and one.finetune.shots == FEW_SHOT["finetune.shots"]
        assert not one.finetune.dev_sets, "the last epoch is taken"
    assert isinstance(view := few.views["image_text"], ImageViewConfig) and list(view.sources) == ["few"]
    for one in (statements, few_statements):
        view = one.views["classify"]
        assert isinstance(view, ClassifyConfig) and set(view.test) == {ENGLISH, *LANGUAGES}
    view = few_statements.views["classify"]
    assert isinstance(view, ClassifyConfig) and set(view.sources) == set(LANGUAGES) and not view.dev


def test_the_summary_says_chance_and_difference(tmp_path: Path) -> None:
    spread = {"mean": 61.24, "deviation": 0.5, "num_seeds": 3}
    row = {"protocol": "few-shot", "shots": "16x20", "reranked": 4, "cells": {"en": spread, "avg": spread}}
    comparison = {"difference": 1.25, "p_bootstrap": 0.01}
    row["comparisons"] = {"avg": comparison}
    table = {"task": "T", "metric": "t2i_r10", "languages": ["en", "de", "ar"], "rows": [row]}
    (tmp_path / "table.json").write_text(json.dumps([table]))
    text = summary(tmp_path)
    assert "chance 0.63" in text and "mean of 2 other languages" in text
    assert "few-shot 16x20, re-ranked 4  61.2 ± 0.5  61.2 ± 0.5 (+1.2 to zero-shot, p 0.0100)" in text
