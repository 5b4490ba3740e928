"""`python -m pretrain check`: what a run reads and needs, against what it then reads and writes."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from cclm.data.loader import StepDataset
from cclm.errors import ConfigError
from cclm.forecast.check import told
from cclm.forecast.data import sources_of
from cclm.forecast.machines import GPUS
from cclm.forecast.needs import Forecast, forecast
from cclm.run.causes import EXIT_CODES, Cause
from cclm.run.checkpoints import complete_checkpoints
from pretrain.__main__ import main
from tests.tiny_run import recipe, with_regions, write_corpus, write_recipe
from tests.tiny_teacher import WIDTH, write_teacher
from tests.tiny_training import dataset_of, read
from tests.unit.data.data_sets import write_images

STEPS = 12


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_corpus(tmp_path_factory.mktemp("corpus"))
    write_images(folder / "more", 30, per_shard=10, first=6)
    return folder


def written(corpus: Path, folder: Path, **changes: Any) -> Path:
    return write_recipe(folder / "recipe.yaml", with_regions(recipe(corpus, folder / "run", **changes), corpus))


def seen(dataset: StepDataset) -> Counter[str]:
    counts = Counter[str]()
    for step in range(STEPS):
        for key, count in dataset[step].samples_seen:
            counts[key] += count
    return counts


@pytest.mark.slow
def test_no_index_of_a_teacher_is_made(corpus: Path, tmp_path: Path) -> None:
    settings = recipe(corpus, tmp_path / "run")
    write_teacher(tmp_path / "teacher", [corpus / "pairs"])
    settings["views"]["text_pair"]["teacher"] = {"path": str(tmp_path / "teacher"), "width": WIDTH}
    settings["data"]["cache"] = {"folder": str(tmp_path / "cache")}
    config = read(str(write_recipe(tmp_path / "recipe.yaml", settings)))
    assert forecast(config, 1, None, 0.35).text_fill and not (tmp_path / "cache").exists()


def test_samples_of_every_source_are_those_that_a_run_then_reads(corpus: Path, tmp_path: Path) -> None:
    settings = recipe(corpus, tmp_path / "run")
    image_text = settings["views"]["image_text"]
    image_text["sources"] = {
        "images": {"path": str(corpus / "images"), "weight": 3},
        "more": {"path": str(corpus / "more"), "weight": 1, "max_epochs": 1},
    }
    image_text["mix"] = {"schedule": [{"start_step": 4, "weights": {"images": 1, "more": 2}}]}
    path = write_recipe(tmp_path / "recipe.yaml", with_regions(settings, corpus, schedule="alternate"))
    dataset = dataset_of(read(str(path)))
    expected, found = list(sources_of(dataset, STEPS)), seen(dataset)
    assert {f"{one.view}/{one.source}": one.drawn for one in expected} == {
        key: count for key, count in found.items() if key.count("/") == 1
    }
    more = next(one for one in expected if one.source == "more")
    assert (more.size, more.epochs) == (30, more.drawn / 30) and 0 < more.epochs <= 1


def test_languages_follow_their_share_or_their_weights(corpus: Path, tmp_path: Path) -> None:
    settings = recipe(corpus, tmp_path / "run")
    settings["views"]["image_text"]["mix"] = {"language_weights": {"en": 3, "de": 1}}
    dataset = dataset_of(read(str(write_recipe(tmp_path / "recipe.yaml", settings))))
    images, pairs = sources_of(dataset, STEPS)
    assert images.languages == {"en": 0.75 * images.drawn, "de": 0.25 * images.drawn}
    assert sum(pairs.languages.values()) == pytest.approx(pairs.drawn)
    found = seen(dataset)
    assert found["image_text/images/en"] == pytest.approx(images.languages["en"], abs=2)


@pytest.mark.slow
def test_the_command_tells_and_writes_it(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, figures = written(corpus, tmp_path), tmp_path / "figures.json"
    words = ["check", str(path), "--world", "2", "--gpu", "H100", "--json", str(figures)]
    assert main([*words, "--hash", "--optimizer.total_steps", "7"]) == 0
    found = json.loads(figures.read_text())
    assert (found["ranks"], found["device"], found["steps"], found["stage"]) == (2, "H100", 7, 3)
    assert found["memory_bytes"] < 2e9 and found["hours"] < 0.01
    assert found["deepspeed"]["train_batch_size"] == 16
    assert {one["view"] for one in found["sources"]} == {"image_text", "text_pair", "regions"}
    assert "7 steps on 2 ranks (H100), ZeRO stage 3" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_checkpoint_is_as_large_as_it_says(corpus: Path, tmp_path: Path) -> None:
    path = written(corpus, tmp_path, engine="plain")
    content = yaml.safe_load(path.read_text())
    content["model"] |= {"width": 256, "projection_width": 256}
    write_recipe(path, content)
    expected = forecast(read(str(path)), 1, None, 0.3)
    assert expected.stage is None and expected.hours is None
    assert main(["--recipe", str(path), "--optimizer.total_steps", "2"]) == 0
    (folder,) = complete_checkpoints(tmp_path / "run")
    size = sum(one.stat().st_size for one in folder.rglob("*"))
    assert size == pytest.approx(expected.checkpoint_bytes, rel=0.05)


def damaged(corpus: Path, folder: Path) -> Path:
    copy = write_corpus(folder / "corpus")
    tars = sorted((copy / "images").glob("*.tar"))
    tars[0].unlink()
    tars[1].write_bytes(tars[1].read_bytes()[:-512])
    content = bytearray(tars[2].read_bytes())
    content[700] ^= 1
    tars[2].write_bytes(content)
    return copy


@pytest.mark.parametrize(("words", "tars"), [((), 2), (("--hash",), 3)])
def test_damaged_shards_and_other_mistakes_are_told_together(
    corpus: Path, tmp_path: Path, words: tuple[str, ...], tars: int, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_recipe(tmp_path / "recipe.yaml", recipe(damaged(corpus, tmp_path), tmp_path / "run"))
    assert main(["check", str(path), "--data.pad_multiple", "0", *words]) == 2
    told = capsys.readouterr().err
    assert "data.pad_multiple" in told
    assert main(["check", str(path), *words]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if ".tar" in line]
    assert len(lines) == tars


def test_sources_that_do_not_last_are_told(corpus: Path, tmp_path: Path) -> None:
    settings = recipe(corpus, tmp_path / "run")
    settings["views"]["image_text"]["sources"]["images"]["max_epochs"] = 1
    path = write_recipe(tmp_path / "recipe.yaml", settings)
    with pytest.raises(ConfigError) as caught:
        forecast(read(str(path)), 1, None, 0.3)
    assert caught.value.where == "views.image_text.sources"


def test_a_recipe_that_fine_tunes_is_refused(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(corpus, tmp_path, finetune={"task": "retrieval", "epochs": 2, "protocol": "zero-shot"})
    assert main(["check", str(path)]) == 2
    assert "one that fine-tunes" in capsys.readouterr().err


@pytest.mark.parametrize("key", ["optimizer.total_steps", "views.text_pair.batch_size", "views.text_pair.num_lanes"])
def test_numbers_that_samples_could_not_be_counted_with_are_refused(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str
) -> None:
    assert main(["check", str(written(corpus, tmp_path)), f"--{key}", "1e23"]) == EXIT_CODES[Cause.USER_ERROR]
    told = capsys.readouterr().err
    assert f"{key}: expected a whole number between 1 and 1e+" in told and "Traceback" not in told


@pytest.mark.parametrize(("command", "words"), [("check", []), ("replay", ["--step", "1"])])
def test_ctrl_c_ends_it_without_a_traceback(
    command: str, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*arguments: Any, **named: Any) -> None:
        raise KeyboardInterrupt

    for name in ("cclm.forecast.check.check_recipe", "cclm.train.replay._replay"):
        monkeypatch.setattr(name, interrupted)
    assert main([command, "demo", *words]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_without_data_a_vocabulary_and_lengths_are_assumed(corpus: Path, tmp_path: Path) -> None:
    path, figures = written(corpus, tmp_path), tmp_path / "figures.json"
    content = yaml.safe_load(path.read_text())
    content["data"]["tokenizer"] = str(tmp_path / "elsewhere")
    content["views"]["image_text"]["sources"] = {"elsewhere": {"path": str(tmp_path / "elsewhere")}}
    write_recipe(path, content)
    assert main(["check", str(path)]) == 2
    assert main(["check", str(path), "--without-data", "--json", str(figures)]) == 0
    found = json.loads(figures.read_text())
    assert found["sources"] == [] and any("250,002" in note for note in found["notes"])
    assert found["parameters"]["text"] > 16 * 250_002


def test_what_does_not_fit_is_noted(corpus: Path, tmp_path: Path) -> None:
    config = read(str(written(corpus, tmp_path)))
    small = GPUS[0].__class__(**{**vars(GPUS[0]), "memory_bytes": 1e9})
    notes: list[Forecast] = [forecast(config, 2, gpu, 0.3) for gpu in (GPUS[0], small)]
    assert [len(one.notes) for one in notes] == [0, 1]
    assert any(line.startswith("note: memory") for line in told(notes[1]))
