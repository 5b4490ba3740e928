"""LoRA under ZeRO on two ranks: an interrupted training goes on bit by bit; an export holds ordinary weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cclm.cli.__main__ import main as cclm
from cclm.engine.protocol import seed_initialisation
from cclm.engine.stored_weights import load_full_state
from cclm.files.reading import to_yaml
from cclm.run.checkpoints import step_folder
from finetune.__main__ import main
from tests.ranks.resuming import STOP, assert_resumed_bit_by_bit, case_of
from tests.tiny_finetune import alone, stand_in, write_tokenizer
from tests.tiny_training import module_of, read

pytestmark = pytest.mark.slow
RANK = 2
STAGES = (3, 1, 2)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """XVNLI's stand-in with adapters of rank 2; dropout, so that a generator's state counts."""
    pytest.importorskip("peft")
    folder = tmp_path_factory.mktemp("lora")
    write_tokenizer(folder)
    settings = alone(stand_in("xvnli", folder / "data"), folder, dev={})
    settings["finetune"] |= {"epochs": 1, "lora": {"rank": RANK, "alpha": 3, "dropout": 0.1}}
    path = folder / "recipe.yaml"
    path.write_text(to_yaml({**settings, "engine": "plain"}), encoding="utf-8")
    return path


def test_an_interrupted_training_goes_on_bit_by_bit(recipe: Path, tmp_path: Path) -> None:
    cases = {f"stage_{stage}": case_of(recipe, stage) for stage in STAGES}
    (whole, _) = assert_resumed_bit_by_bit(cases, tmp_path)
    for name in cases:
        assert any(".lora_B." in one for one in whole[name].parameters)
        stored = load_full_state(step_folder(tmp_path / name, STOP))
        assert not any("lora" in one for one in stored)


def test_an_export_holds_the_products_in_its_weights(recipe: Path, tmp_path: Path) -> None:
    """Each weight of the encoders is the one that it was at the start, and a matrix of the adapters' rank."""
    run = tmp_path / "run"
    assert main(["--recipe", str(recipe), "--run_folder", str(run)]) == 0
    assert cclm(["export", str(run), "--to", str(tmp_path / "model")]) == 0
    exported = load_file(tmp_path / "model" / "model.safetensors")
    config = read(str(recipe))
    assert config.finetune is not None
    seed_initialisation(config.seed)
    start = module_of(replace(config, finetune=replace(config.finetune, lora=None))).model.state_dict()
    assert exported.keys() == start.keys()
    moved = {name: one - start[name] for name, one in exported.items() if not torch.equal(one, start[name])}
    inside = {name: change for name, change in moved.items() if "_encoder." in name}
    assert inside and len(inside) < len(moved), "adapters, and heads"
    for name, change in inside.items():
        assert torch.linalg.matrix_rank(change, rtol=1e-3) <= RANK, name
