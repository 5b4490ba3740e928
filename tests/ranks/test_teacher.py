"""A teacher in training: with ZeRO it goes on bit by bit; an export knows nothing of it; workers find what ranks do."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from cclm.cli.__main__ import main as cclm
from cclm.data.loader import make_loader
from cclm.pretrained.source_files import open_source
from cclm.track.metrics import read_metrics
from pretrain.__main__ import main
from tests.ranks.harness import train_plain
from tests.ranks.resuming import STOP, assert_resumed_bit_by_bit, case_of
from tests.tiny_batches import same
from tests.tiny_run import recipe, write_corpus, write_recipe
from tests.tiny_teacher import WIDTH, write_teacher
from tests.tiny_training import dataset_of, module_of, read

pytestmark = pytest.mark.slow
MAP = "teacher_maps.image_text.weight"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One form for each view."""
    folder = write_corpus(tmp_path_factory.mktemp("teacher"))
    settings: dict[str, Any] = recipe(folder, folder / "run", engine="plain", checkpoint={"every_steps": 4, "keep": 1})
    teacher = str(write_teacher(folder / "features", [folder / "images", folder / "pairs"]))
    settings["views"]["image_text"]["teacher"] = {"path": teacher, "width": WIDTH}
    settings["views"]["text_pair"]["teacher"] = {"path": teacher, "width": WIDTH, "form": "relational"}
    settings["data"]["cache"] = {"folder": str(folder / "cache")}
    settings["optimizer"]["total_steps"] = 4
    return write_recipe(folder / "recipe.yaml", settings)


def test_an_interrupted_training_goes_on_bit_by_bit(path: Path, tmp_path: Path) -> None:
    """And is that of one process with the plain engine."""
    whole = assert_resumed_bit_by_bit({"zero": case_of(path)}, tmp_path)[0]["zero"]
    plain = train_plain(case_of(path))
    assert max(abs(ours - reference) for ours, reference in zip(whole.losses, plain.losses[STOP:], strict=True)) < 1e-5
    difference = whole.parameters[MAP] - plain.parameters[MAP]
    assert difference.abs().max() < 1e-5
    assert whole.metrics[0]["text_pair/teacher_second"] > 0


def test_a_trained_export_leaves_the_map_out(path: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main(["--recipe", str(path), "--run_folder", str(run)]) == 0
    _, line = read_metrics(run)[-1]
    assert 0 < line["image_text/teacher_text_known"] < 1 and line["image_text/teacher_image"] > 0
    assert cclm(["export", str(run), "--to", str(tmp_path / "model")]) == 0
    exported = load_file(tmp_path / "model" / "model.safetensors")
    network = module_of(read(str(path))).model
    names = {*network.state_dict()}
    assert exported.keys() == names - {*network.config.options().tied_weights}
    assert open_source(run).keys() == names, "another run may start from this one"
    assert json.loads((tmp_path / "model" / "parity.json").read_text())["max_abs"] < 1e-4


def test_loader_workers_find_what_their_rank_finds(path: Path) -> None:
    dataset = dataset_of(read(str(path)))
    loader = make_loader(dataset, 0, 3, num_workers=2)
    for step, batch in enumerate(islice(loader, 3)):
        assert same(batch, dataset[step]) and batch.views["image_text"].taught
