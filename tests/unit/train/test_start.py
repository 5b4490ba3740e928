"""A run that names its towers and its sources: sizes are read, weights are filled in, and it is written down."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from cclm.config import RunConfig
from cclm.costs.recipe import Counter
from cclm.data.tokens import load_tokenizer
from cclm.engine.options import LoraOptions
from cclm.engine.parts import add_lora
from cclm.errors import ConfigError
from cclm.files.reading import to_plain
from cclm.train.network import START_FILE, names_towers, with_named_towers
from cclm.views.image_text.options import ImageViewConfig
from tests.tiny_run import recipe, write_corpus, write_recipe
from tests.tiny_training import as_config, dataset_of, module_of, read
from tests.unit.model.hf_texts import CONFIGS as TEXT_CONFIGS
from tests.unit.model.hf_towers import CONFIGS, VIT
from tests.unit.pretrained.test_towers import TEXT


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return with_named_towers(as_config(settings_of(tmp_path)))


def settings_of(tmp_path: Path) -> dict[str, Any]:
    corpus = write_corpus(tmp_path / "corpus")
    vocab_size = load_tokenizer(corpus / "tokenizer").vocab_size
    torch.manual_seed(4)
    tower = transformers.Dinov2Model(transformers.Dinov2Config(**VIT, image_size=16))
    text = transformers.XLMRobertaForMaskedLM(
        transformers.XLMRobertaConfig(**{**TEXT.to_dict(), "vocab_size": vocab_size})
    )
    for name, model in (("tower", tower), ("text", text)):
        model.save_pretrained(tmp_path / name)
    model = {
        "vision": {"architecture": "hf", "source": str(tmp_path / "tower")},
        "text": {"source": str(tmp_path / "text"), "num_layers": 2},
        "fusion": {"num_layers": 2},
    }
    return recipe(
        corpus,
        tmp_path / "run",
        model=model,
        start={"sources": [str(tmp_path / "tower"), str(tmp_path / "text")], "text_fills": "text_and_fusion"},
    )


def test_reading_a_recipe_asks_nobody_about_its_towers(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    settings["model"]["text"]["source"] = "nobody/has-this-model"
    config = as_config(settings)
    assert names_towers(config)
    assert config.model.text.source == "nobody/has-this-model" and config.model.vision.tower is None


def test_sizes_of_towers_must_fit_the_data(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    settings["views"]["image_text"]["transform"]["size"] = 32
    with pytest.raises(ConfigError) as caught:
        with_named_towers(as_config(settings))
    assert caught.value.problems == ("views.image_text.transform.size 32 is not model.vision.image_size 16",)


def test_a_named_tower_brings_its_pixel_values(tmp_path: Path) -> None:
    settings, tower = settings_of(tmp_path), tmp_path / "siglip"
    CONFIGS["siglip"].save_pretrained(tower)
    transformers.SiglipImageProcessor().save_pretrained(tower)
    settings["model"]["vision"] = {"architecture": "hf", "source": str(tower), "image_size": 16}
    settings["views"]["image_text"]["transform"] |= {"std": [0.2, 0.3, 0.4]}
    images = with_named_towers(as_config(settings)).views["image_text"]
    assert isinstance(images, ImageViewConfig)
    assert (images.transform.mean, images.transform.std) == ((0.5, 0.5, 0.5), (0.2, 0.3, 0.4))


def test_sizes_are_read_and_weights_filled(tmp_path: Path, config: RunConfig) -> None:
    assert (config.model.width, config.model.vision.image_size, config.model.text.num_heads) == (48, 16, 6)
    assert (config.model.vision.source, config.model.text.source) == (None, None)
    module = module_of(config)
    tower = transformers.AutoModel.from_pretrained(tmp_path / "tower")
    for name, value in tower.named_parameters():
        assert torch.equal(module.model.vision_encoder.tower.get_parameter(name), value), name
    assert module.model.vision_encoder.project is not None  # 32 channels to 48
    note = json.loads((tmp_path / "run" / START_FILE).read_text())
    assert note["sources"] == list(config.start.sources)
    assert "vision_encoder.project.weight" in note["fresh"]
    assert not any("feedforward" in name or "self_attention" in name for name in note["fresh"])
    assert {entry["fate"] for entry in note["keys"]} == {"used"}


def test_a_resumed_run_does_not_look_at_the_sources(tmp_path: Path, config: RunConfig) -> None:
    for name in ("tower", "text"):
        (tmp_path / name / "model.safetensors").unlink()
    module_of(config, is_fresh=False)
    assert not (tmp_path / "run" / START_FILE).exists()


def test_the_resolved_configuration_reads_as_itself(tmp_path: Path, config: RunConfig) -> None:
    assert read(str(write_recipe(tmp_path / "resolved.yaml", to_plain(config)))) == config


@pytest.fixture
def with_text_tower(tmp_path: Path) -> RunConfig:
    """As mmBERT is started from: its table of words has rows behind the tokenizer's ids."""
    corpus = write_corpus(tmp_path / "corpus")
    kind = TEXT_CONFIGS["modernbert"].to_dict() | {"vocab_size": load_tokenizer(corpus / "tokenizer").vocab_size + 3}
    transformers.ModernBertForMaskedLM(transformers.ModernBertConfig(**kind)).save_pretrained(tmp_path / "text")
    settings = recipe(corpus, tmp_path / "run", start={"sources": [str(tmp_path / "text")]})
    text = {"architecture": "hf", "source": str(tmp_path / "text"), "tower": {"num_hidden_layers": 2}}
    return with_named_towers(as_config({**settings, "model": {**settings["model"], "width": 32, "text": text}}))


@pytest.mark.slow
def test_a_text_tower_is_filled_from_its_source_and_trains(tmp_path: Path, with_text_tower: RunConfig) -> None:
    config = with_text_tower
    assert read(str(write_recipe(tmp_path / "resolved.yaml", to_plain(config)))) == config
    module = module_of(config)
    theirs, encoder = transformers.AutoModel.from_pretrained(tmp_path / "text"), module.model.text_encoder
    words = theirs.get_input_embeddings().weight
    assert torch.equal(encoder.embeddings.words.weight, words[:-3])
    assert len(encoder.tower.layers) == 2 and torch.equal(
        encoder.tower.layers[1].mlp.Wi.weight, theirs.layers[1].mlp.Wi.weight
    )
    module(dataset_of(config)[0]).total.backward()
    assert [name for name, one in encoder.named_parameters() if one.grad is None or not one.grad.any()] == []
    note = json.loads((tmp_path / "run" / START_FILE).read_text())
    assert not any(name.startswith("text_encoder") for name in note["fresh"])
    dropped = {
        entry["key"].split(".")[2]
        for entry in note["keys"]
        if entry["key"].startswith("model.layers") and entry["fate"] == "dropped"
    }
    assert dropped == {"2"}


@pytest.mark.slow
def test_adapters_and_costs_of_a_text_tower(with_text_tower: RunConfig) -> None:
    pytest.importorskip("peft")
    module = module_of(with_text_tower)
    add_lora(module, LoraOptions(rank=2, parts=("model.text_encoder",)))
    learning = {name for name, one in module.named_parameters() if one.requires_grad and "text_encoder" in name}
    assert learning and all(".lora_" in name and ".tower.layers." in name for name in learning)
    assert Counter(with_text_tower).text(4).flops > 0
