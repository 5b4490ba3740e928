"""What is wrong with an annotation file that is measured is said before anything is trained."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from cclm.annotations.retrieval import PARTS
from cclm.distributed.collectives import collectives
from cclm.distributed.topology import Topology
from cclm.errors import CclmError, DataError
from cclm.recipe.epochs import with_epochs
from cclm.train.evaluation import TaskMetric, evaluation_of
from cclm.train.network import build_engine
from cclm.train.row_evaluation import RowEvaluation
from tests.tiny_finetune import alone, stand_in, write_tokenizer
from tests.tiny_training import as_config, dataset_of, module_of


def evaluation_in(
    tmp_path: Path, finetune: Mapping[str, Any] = MappingProxyType({}), **view: Any
) -> tuple[Path, RowEvaluation]:
    write_tokenizer(tmp_path)
    data = stand_in("xvnli", tmp_path / "data")
    settings = {**alone(data, tmp_path, **view), "engine": "plain"}
    settings["finetune"] |= finetune
    config = with_epochs(as_config(settings))
    Path(config.run_folder).mkdir()
    ranks, metric = collectives(), TaskMetric(task="xvnli", view="classify", metrics=("accuracy",))
    engine = build_engine(config, module_of(config, ranks), Topology.from_environment(device="cpu"), None)
    found = evaluation_of(metric, config, engine, dataset_of(config), 0)
    assert isinstance(found, RowEvaluation)
    return data, found


def test_ids_that_stand_twice_are_refused_at_the_start(tmp_path: Path) -> None:
    data, found = evaluation_in(tmp_path)
    with (data / "annotations/en/train.jsonl").open(encoding="utf-8") as rows:
        (data / "twice.jsonl").write_text(next(rows) * 2, encoding="utf-8")
    with pytest.raises(DataError) as caught:
        found.check("en", "twice.jsonl", "test")
    assert (caught.value.reason, caught.value.where) == ("key_twice", str(data / "twice.jsonl"))


@pytest.mark.parametrize("part", ["sources", "dev", "test"])
def test_classes_that_the_model_has_not_are_refused_at_the_start(tmp_path: Path, part: str) -> None:
    paths = {}
    for name, labels in (("good", (0, 1, 2) * 2), ("from_one", (1, 2, 3) * 2)):
        rows = [{"images": ["red_box.jpg"], "text": "red", "label": label} for label in labels]
        paths[name] = tmp_path / f"{name}.jsonl"
        paths[name].write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    files = {key: str(paths["from_one" if key == part else "good"]) for key in ("sources", "dev", "test")}
    view = {"sources": {"en": {"path": files["sources"]}}, "dev": {"en": files["dev"]}, "test": {"en": files["test"]}}
    with pytest.raises(DataError, match=r"classes from 0 to 2, got 3 in row en:from_one.jsonl:3") as caught:
        evaluation_in(tmp_path, format="rows", **view)
    assert (caught.value.reason, caught.value.where) == ("class_unknown", str(paths["from_one"]))


@pytest.mark.parametrize("part", ["dev", "test"])
@pytest.mark.parametrize(
    ("change", "reason", "where"),
    [
        ({"images": ["no_such.jpg"]}, "image_missing", ", no_such.jpg"),
        ({"images": ["../no_image"]}, "image_missing", ", ../no_image"),
        ({"text": " "}, "text_empty", ", row b"),
        ({"images": ["red_box.jpg", "red_box.jpg"]}, None, ", row b"),
        ({"label": None, "answers": {"red": 1}}, None, ", row b"),
    ],
)
def test_a_row_that_cannot_be_measured_is_refused_at_the_start(
    tmp_path: Path, part: str, change: dict[str, Any], reason: str | None, where: str
) -> None:
    row = {"id": "a", "images": ["red_box.jpg"], "text": "red", "label": 1}
    files = {key: tmp_path / f"{key}.jsonl" for key in ("sources", "dev", "test")}
    for key, path in files.items():
        second = {**row, "id": "b", **(change if key == part else {})}
        path.write_text("".join(json.dumps(one) + "\n" for one in [row, second] * (3 if key == "sources" else 1)))
    view = {"sources": {"en": {"path": str(files["sources"])}}, **{key: {"en": str(files[key])} for key in PARTS}}
    with pytest.raises(CclmError) as caught:
        evaluation_in(tmp_path, format="rows", **view)
    assert getattr(caught.value, "reason", None) == reason
    assert caught.value.where == f"{files[part]}{where}"


def test_images_of_a_set_that_chooses_nothing_need_not_be_there(tmp_path: Path) -> None:
    """Not when weights are chosen on test, nor in a run of no epochs, as `finetune measure` makes one."""
    there, missing = tmp_path / "there.jsonl", tmp_path / "missing.jsonl"
    rows = [{"id": name, "images": ["red_box.jpg"], "text": "red", "label": 1} for name in "abcdef"]
    there.write_text("".join(json.dumps(row) + "\n" for row in rows))
    missing.write_text(json.dumps({**rows[0], "images": ["no_such.jpg"]}) + "\n")
    sources, test = {"en": {"path": str(there)}}, {"en": str(there)}
    for name, changes in (("no epochs", {"epochs": 0}), ("test", {"select_on": "test"})):
        folder = tmp_path / name
        folder.mkdir()
        view = {"format": "rows", "sources": sources, "dev": {"en": str(missing)}, "test": test}
        _, found = evaluation_in(folder, changes, **view)
        assert not found.will_measure("dev") and found.will_measure("test")
