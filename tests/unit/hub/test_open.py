from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from cclm.errors import CheckpointError, ConfigError
from cclm.hub.open import (
    OpenedModel,
    build_model,
    model_config,
    open_model,
    transform_of,
    with_weights,
)
from cclm.model.options import options_from_dict
from cclm.recipe.read import read_run_config
from tests.kinds import EVERY_KIND, KINDS
from tests.tiny_config import run_config, run_values
from tests.tiny_families import wavy_model
from tests.unit.hub.small_model import SMALL
from tests.unit.hub.test_hub_folder import write


def test_state_may_carry_the_training_modules_prefix(opened: OpenedModel) -> None:
    state = {f"model.{name}": tensor for name, tensor in opened.model.state_dict().items()}
    built = build_model(opened.model.config, state, "here")
    assert all(torch.equal(tensor, opened.model.state_dict()[name]) for name, tensor in built.state_dict().items())
    assert not built.training


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_a_rebuilt_model_of_any_kind_computes_the_same(kind: str) -> None:
    """Towers of the transformers library have buffers (positions, index tables) that no state dict holds."""
    model = wavy_model(KINDS[kind])
    built = build_model(model.config, model.state_dict(), "here")
    expected = dict(model.named_buffers())
    assert dict(built.named_buffers()).keys() == expected.keys()
    assert all(value.dtype == expected[name].dtype for name, value in built.named_buffers())
    assert not any(value.is_meta for value in (*built.parameters(), *built.buffers()))
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(built.encode_images(pixels), model.encode_images(pixels))


def test_tied_decoder_may_be_missing_and_is_tied(opened: OpenedModel) -> None:
    state = {name: value for name, value in opened.model.state_dict().items() if name != "masked_lm_decoder.weight"}
    built = build_model(opened.model.config, state, "here")
    assert built.masked_lm_decoder.weight is built.text_encoder.embeddings.words.weight


def test_other_weights_have_another_fingerprint_whether_or_not_the_models_own_was_asked_for(
    opened: OpenedModel,
) -> None:
    state = {name: value.clone() for name, value in opened.model.state_dict().items()}
    state["temperature.value"] += 1
    assert opened.fingerprint != with_weights(opened, state).fingerprint
    assert opened.fingerprint == with_weights(opened, opened.model.state_dict()).fingerprint


def test_weights_that_do_not_fit_are_refused_with_their_names(opened: OpenedModel) -> None:
    state = dict(opened.model.state_dict())
    del state["temperature.value"]
    with pytest.raises(CheckpointError, match=r"missing \['temperature.value'\]"):
        build_model(opened.model.config, state, "here")
    with pytest.raises(CheckpointError, match="unexpected"):
        build_model(opened.model.config, {**opened.model.state_dict(), "other": torch.zeros(1)}, "here")
    with pytest.raises(CheckpointError, match="size mismatch"):
        build_model(opened.model.config, {**opened.model.state_dict(), "temperature.value": torch.zeros(3)}, "here")


def test_vocabulary_comes_from_the_tokenizer(opened: OpenedModel) -> None:
    config = model_config(options_from_dict({**SMALL, "text": {**SMALL["text"], "vocab_size": 7}}), opened.tokenizer)
    assert config.text["vocab_size"] == opened.tokenizer.vocab_size
    assert config.text["num_layers"] == 1


def test_transform_of_a_run_without_pictures_has_the_models_size() -> None:
    config = run_config(views={"image_text": None}, model={"vision": {"image_size": 48}})
    assert transform_of(config).size == 48
    images = {"sources": {"x": {"path": "x"}}, "transform": {"size": 32, "mean": [0.1, 0.2, 0.3]}}
    assert transform_of(run_config(views={"image_text": images})).mean == (0.1, 0.2, 0.3)


def test_opening_something_else_says_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nothing at this path"):
        open_model(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="a run folder"):
        open_model(tmp_path)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(run_values()))
    with pytest.raises(CheckpointError, match="a complete checkpoint, got none"):
        open_model(tmp_path)


def test_an_export_of_another_version_says_how_to_open_it(opened: OpenedModel, tmp_path: Path) -> None:
    write(opened, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    config["vision"]["since_removed"] = True
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"since_removed.*trust_remote_code"):
        open_model(tmp_path / "out")


@pytest.mark.parametrize(
    ("content", "words"), [(b"a: [", "broken YAML"), (b"\xff", "not UTF-8"), (None, "got a folder")]
)
def test_a_config_that_cannot_be_read_is_one_sentence(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "config.yaml"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(ConfigError, match=words):
        read_run_config(tmp_path)
