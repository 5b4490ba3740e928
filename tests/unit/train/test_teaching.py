"""A teacher in a step: which maps there are, what each side's loss is a mean of; without one nothing is there."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray
from torch.nn import functional

from cclm.config import RunConfig
from cclm.data.batch import Batch
from cclm.data.ledger import text_hash
from cclm.data.teacher import open_index
from cclm.objectives.teacher import relational_reference
from cclm.pretrained.source_files import of_network
from cclm.recipe.read import read_recipe
from cclm.shardfile.options import CacheConfig
from cclm.train.step import CrossViewTraining
from tests.tiny_run import recipe, write_corpus, write_recipe
from tests.tiny_teacher import WIDTH, feature_of, write_teacher
from tests.tiny_training import as_config, dataset_of, module_of

SIDES = {"image_text": ("image", "text"), "text_pair": ("first", "second")}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_corpus(tmp_path_factory.mktemp("corpus"))
    for width in (WIDTH, 16):
        write_teacher(folder / f"teacher{width}", [folder / "images", folder / "pairs"], width)
    return folder


def taught(corpus: Path, **teacher: Any) -> RunConfig:
    settings = recipe(corpus, corpus / "run")
    for view in settings["views"].values():
        view["teacher"] = {"path": str(corpus / f"teacher{teacher['width']}"), **teacher}
    settings["data"]["cache"] = {"folder": str(corpus / "cache")}
    return as_config(settings)


def step(config: RunConfig) -> tuple[CrossViewTraining, Batch, dict[str, float]]:
    module, batch = module_of(config).eval(), dataset_of(config)[0]
    return module, batch, {name: value.item() for name, value in module(batch).metrics.items()}


def test_each_side_is_a_mean_over_the_rows_that_are_known(corpus: Path) -> None:
    module, batch, metrics = step(taught(corpus, width=WIDTH, weight=0.5))
    _, parts, _, _ = module._contributions(batch)
    total = module_of(taught(corpus, width=WIDTH, weight=0.0)).eval()(batch).total
    for view, sides in SIDES.items():
        assert batch.views[view].taught.keys() == {*sides}
        for side in sides:
            rows, feature = batch.views[view].taught[side], parts[view].taught[side]
            known = rows.row_N >= 0
            cosine = functional.cosine_similarity(module.teacher_maps[view](feature), rows.feature_NT.float())
            assert metrics[f"{view}/teacher_{side}"] == pytest.approx((1 - cosine[known]).mean().item(), rel=1e-5)
            assert metrics[f"{view}/teacher_{side}_known"] == pytest.approx(known.float().mean().item())
            total = total + 0.5 * metrics[f"{view}/teacher_{side}"]
    assert metrics["loss"] == pytest.approx(total.item(), rel=1e-5)


def test_relations_of_a_whole_batch(corpus: Path) -> None:
    config = taught(corpus, width=WIDTH, form="relational", temperature=0.2)
    module, batch, metrics = step(config)
    _, parts, _, _ = module._contributions(batch)
    assert len(module.teacher_maps) == 0, "similarities have no width"
    for view, sides in SIDES.items():
        for side in sides:
            rows = batch.views[view].taught[side]
            total = relational_reference(parts[view].taught[side], rows.feature_NT.float(), rows.row_N, 0.2)
            expected = (total / (rows.row_N >= 0).sum()).item()
            assert metrics[f"{view}/teacher_{side}"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("form", ["cosine", "relational"])
def test_under_autocast_losses_differ_by_rounding(corpus: Path, form: str) -> None:
    """bfloat16 keeps 8 bits of the states; the losses themselves are computed in float32."""
    module, batch, exact = step(taught(corpus, width=WIDTH, form=form, temperature=0.2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = module(batch)
    losses.total.backward()
    for name in (name for name in exact if "teacher" in name):
        assert losses.metrics[name].item() == pytest.approx(exact[name], rel=0.05), name
    assert all(one.weight.grad is not None and one.weight.grad.any() for one in module.teacher_maps.values())


def test_maps_are_there_where_widths_differ_and_are_no_part_of_the_network(corpus: Path) -> None:
    module, again = (module_of(taught(corpus, width=WIDTH)) for _ in range(2))
    assert {name: tuple(one.weight.shape) for name, one in module.teacher_maps.items()} == {
        "image_text": (WIDTH, 16),
        "text_pair": (WIDTH, 16),
    }
    first, second = (module.teacher_maps[view].weight for view in SIDES)
    assert torch.equal(first, again.teacher_maps["image_text"].weight) and not torch.equal(first, second)
    assert of_network(module.state_dict()).keys() == module.model.state_dict().keys()
    assert len(module_of(taught(corpus, width=16)).teacher_maps) == 0


def test_without_a_teacher_nothing_is_there(corpus: Path) -> None:
    module, batch, metrics = step(as_config(recipe(corpus, corpus / "run")))
    assert not any("teacher" in name for name in [*metrics, *module.state_dict()])
    assert all(view.taught == {} for view in batch.views.values())
    config = taught(corpus, width=WIDTH, weight=0.0)
    other, same_batch, with_teacher = step(config)
    assert {name: with_teacher[name] for name in metrics} == metrics, "no draw has moved"
    assert torch.equal(same_batch.views["text_pair"].ledger_S, batch.views["text_pair"].ledger_S)
    for name, value in module.state_dict().items():
        assert torch.equal(value, other.state_dict()[name])


def test_a_model_without_projections_has_nothing_to_teach(corpus: Path) -> None:
    config = taught(corpus, width=16)
    model = replace(config.model, pretraining_heads=False)
    found = [one for view in config.views.values() for one in view.model_errors(model, 1)]
    assert sum(one.startswith("teacher: ") for one in found) == 2


class StandIn:
    """As much of a SentenceTransformer as the page needs."""

    def __init__(self, name: str) -> None:
        assert name == "data/demo/e5"

    def encode(self, texts: list[str], batch_size: int) -> NDArray[np.float32]:
        assert all(text.startswith("query: ") for text in texts)
        return np.stack([feature_of(text.removeprefix("query: "), 384) for text in texts])


def test_what_the_page_says(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Path("docs/recipes.md").read_text(encoding="utf-8").split("## A teacher's features")[1].split("\n## ")[0]
    (program,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (settings,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    (overrides,) = re.findall(r"-m pretrain\.demo --seed \$seed --run \S+ -- (.*?)\n    done", page, re.DOTALL)
    own = write_recipe(tmp_path / "own.yaml", yaml.safe_load(settings))
    forms = [
        view.teacher.form
        for view in read_recipe(["--recipe", "demo", "--recipe", str(own)]).views.values()
        if view.teacher
    ]
    assert forms == ["cosine", "relational"]
    config = read_recipe(["--recipe", "demo", *shlex.split(overrides.replace("\\\n", ""))])
    teachers = [view.teacher for view in config.views.values()]

    for name, root in (("image-train", "images"), ("text-train", "pairs")):
        shutil.copytree(corpus / root, tmp_path / "data" / "demo" / name)
    library = ModuleType("sentence_transformers")
    library.SentenceTransformer = StandIn  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sentence_transformers", library)
    monkeypatch.setenv("CCLM_SHARD_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    exec(program, {})
    for teacher in teachers:
        assert teacher is not None
        found, known = open_index(teacher, CacheConfig()).look_up(
            [text_hash("aa"), text_hash("aaba"), text_hash("ab aa")]
        )
        assert known.tolist() == [True, False, True]
        np.testing.assert_allclose(found[0], feature_of("aa", 384), atol=5e-4)
