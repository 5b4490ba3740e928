"""LoRA: only adapters and heads learn; a checkpoint resumes, and its weights are those of an ordinary model."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cclm.checkpoint.collective import save_checkpoint
from cclm.engine.options import LoraOptions
from cclm.engine.parts import ALPHA, add_lora
from cclm.engine.plain import PlainEngine
from cclm.engine.stored_weights import StoredTensor, load_full_state, without_adapters
from cclm.errors import ConfigError, MissingDependencyError
from cclm.train.step import CrossViewTraining
from tests.tiny_finetune import alone, stand_in, write_tokenizer
from tests.tiny_training import as_config, dataset_of, module_of


def test_adapters_are_added_to_their_layers() -> None:
    state = {
        "a.x.base_layer.weight": torch.ones(3, 2),
        "a.x.base_layer.bias": torch.ones(3),
        "a.x.lora_A.default.weight": torch.tensor([[1.0, 2.0]]),
        "a.x.lora_B.default.weight": torch.tensor([[1.0], [0.0], [-1.0]]),
        f"a.x.{ALPHA}": torch.tensor(4),
        "a.y.weight": torch.zeros(2),
    }
    stored = {
        name: StoredTensor(shape=tuple(value.shape), dtype=value.dtype, parts=(value.flatten(),))
        for name, value in state.items()
    }
    found = without_adapters(stored)
    assert {name: one.whole().tolist() for name, one in found.items()} == {
        "a.x.weight": [[5.0, 9.0], [1.0, 1.0], [-3.0, -7.0]],
        "a.x.bias": [1.0, 1.0, 1.0],
        "a.y.weight": [0.0, 0.0],
    }


def test_a_missing_peft_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingDependencyError) as caught:
        add_lora(torch.nn.Linear(2, 2), LoraOptions())
    assert "cclm-pretraining[lora]" in caught.value.do


def settings_of(folder: Path, lora: Mapping[str, Any] | None) -> dict[str, Any]:
    write_tokenizer(folder)
    settings = alone(stand_in("xvnli", folder / "data"), folder)
    settings["engine"] = "plain"
    settings["finetune"]["lora"] = lora
    return settings


def test_a_moving_average_of_adapters_is_refused(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, {"rank": 2})
    settings["optimizer"]["ema_decay"] = 0.9
    config = as_config({**settings, "optimizer": {**settings["optimizer"], "ema_decay": 0.0}})
    assert not list(config.validation_errors())
    with pytest.raises(AssertionError):
        as_config(settings)


def trained(engine: PlainEngine[Any], settings: Mapping[str, Any], steps: range) -> list[Tensor]:
    losses, dataset = [], dataset_of(as_config(settings))
    for step in steps:
        found = engine.forward(dataset[step])
        engine.backward(found)
        engine.update(step)
        losses.append(found.total.detach())
    return losses


def engine_of(settings: Mapping[str, Any]) -> PlainEngine[Any]:
    config = as_config(settings)
    return PlainEngine(module_of(config), config.optimizer, seed=config.seed)


@pytest.mark.slow
def test_only_adapters_and_heads_learn_and_a_checkpoint_is_an_ordinary_model(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    settings = settings_of(tmp_path, {"rank": 2, "alpha": 3})
    engine, plain = (
        engine_of(settings),
        module_of(as_config({**settings, "finetune": {**settings["finetune"], "lora": None}})),
    )
    batch = dataset_of(as_config(settings))[0]
    module = engine.module
    assert isinstance(module, CrossViewTraining)
    assert torch.equal(module.eval()(batch).total, plain.eval()(batch).total), "a fresh adapter adds nothing"
    learning = {name for name, one in module.named_parameters() if one.requires_grad}
    encoders = {name for name in learning if "_encoder" in name}
    assert encoders and all(".lora_" in name for name in encoders) and any("class_head" in name for name in learning)

    module.train()
    before = {name: one.clone() for name, one in module.named_parameters()}
    trained(engine, settings, range(3))
    changed = {name for name, one in module.named_parameters() if not torch.equal(one, before[name])}
    assert changed == learning
    path = save_checkpoint(engine, tmp_path / "saved", 3, {}, keep=1)
    state = load_full_state(path)
    assert state.keys() == plain.state_dict().keys()
    plain.load_state_dict(state)
    torch.testing.assert_close(plain(batch).total, module.eval()(batch).total, atol=1e-6, rtol=1e-6)

    again = engine_of(settings)
    again.load(path)
    module.train()
    assert torch.equal(*(torch.stack(trained(one, settings, range(3, 5))) for one in (engine, again)))


@pytest.mark.parametrize(
    "parts",
    [
        ["model.txt_encoder"],
        ["model.text_encoder.embeddings"],
        ["model.fusion_encoder", "model.text_encoder.embeddings"],
    ],
)
def test_an_unknown_part_and_one_without_linear_layers_are_refused(tmp_path: Path, parts: list[str]) -> None:
    pytest.importorskip("peft")
    settings = settings_of(tmp_path, {"parts": parts})
    with pytest.raises(ConfigError) as caught:
        module_of(as_config(settings))
    assert caught.value.where == "finetune.lora.parts"
