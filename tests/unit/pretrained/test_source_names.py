"""Files as transformers writes them, against what transformers itself computes with them."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from cclm.errors import CheckpointError
from cclm.model.configuration_cclm import CCLMConfig
from cclm.model.modeling_cclm import CCLMModel
from cclm.model.options import FusionOptions, ModelOptions, TextOptions, VisionOptions
from cclm.pretrained.initialise import source_weights, start_model
from cclm.pretrained.source_names import choose_layers
from cclm.pretrained.towers import with_towers
from tests.left_to_long import left_to_slow
from tests.tiny_families import TINY_BEIT, TINY_SWIN
from tests.unit.model import hf_texts
from tests.unit.model.hf_texts import shaken
from tests.unit.model.hf_towers import CONFIGS, MLP, WIDTH
from tests.unit.pretrained.test_towers import TEXT

SWIN = transformers.SwinConfig(image_size=32, patch_size=4, embed_dim=8, depths=[2, 2], num_heads=[1, 2], window_size=4)
BEIT: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
    "use_mean_pooling": True,
    "layer_norm_eps": 1e-6,
}


def started(
    options: ModelOptions, *sources: Path, reach: Any = "auto", layers: Any = "spread"
) -> tuple[CCLMModel, list[str]]:
    torch.manual_seed(2)
    model = CCLMModel(CCLMConfig(**asdict(options))).eval()
    state, _ = source_weights(sources, options, reach, layers)
    return model, start_model(model, state)


def saved(model: nn.Module, folder: Path, **how: Any) -> Path:
    model.save_pretrained(folder, **how)  # type: ignore[operator]
    return folder


def image_tokens(model: CCLMModel, pixels: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.encode_images(pixels)[:, 1:]


def same_states(model: CCLMModel, theirs: Any, ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
    """The states of a model of transformers, which ours must have too."""
    with torch.no_grad():
        expected: Tensor = theirs(ids_BL, mask_BL.long()).last_hidden_state
        found = model.encode_texts(ids_BL, mask_BL)
    torch.testing.assert_close(found[mask_BL], expected[mask_BL], atol=1e-5, rtol=1e-4)
    return expected


def check_fresh(fresh: Any, head: bool) -> None:
    """The text encoder was filled whole, and the masked-LM head exactly if the source has one."""
    assert not any(name.startswith("text_encoder") for name in fresh)
    assert any(name.startswith("masked_lm_transform") for name in fresh) is not head


@pytest.mark.parametrize("kind", [transformers.SwinModel, transformers.SwinForImageClassification])
def test_swin_of_transformers(tmp_path: Path, kind: Any) -> None:
    theirs = shaken(kind(SWIN))
    model, fresh = started(TINY_SWIN, saved(theirs, tmp_path / "swin"))
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = getattr(theirs, "swin", theirs)(pixels).last_hidden_state
    torch.testing.assert_close(image_tokens(model, pixels), expected, atol=1e-5, rtol=1e-4)
    assert not any(name.startswith("vision_encoder") for name in fresh)


@pytest.mark.parametrize("table", ["use_relative_position_bias", "use_shared_relative_position_bias"])
def test_beit_of_transformers(tmp_path: Path, table: str) -> None:
    theirs = shaken(transformers.BeitForImageClassification(transformers.BeitConfig(**BEIT, **{table: True})))
    model, fresh = started(TINY_BEIT, saved(theirs, tmp_path / "beit"))
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        states = theirs.beit(pixels).last_hidden_state[:, 1:]
        pooled = theirs.beit(pixels).pooler_output
        summary = model.encode_images(pixels)[:, 0]
    # transformers takes the mean before the norm; CCLM-X2VLM norms every patch and takes the mean then
    expected = nn.functional.layer_norm(
        states, (16,), theirs.beit.pooler.layernorm.weight, theirs.beit.pooler.layernorm.bias, 1e-6
    )
    torch.testing.assert_close(image_tokens(model, pixels), expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(summary, pooled)
    assert not any(name.startswith("vision_encoder") for name in fresh)


def test_an_original_beit_with_one_table_for_all_blocks(tmp_path: Path) -> None:
    from tests.unit.pretrained.test_initialise import tower_file

    state = tower_file("beit")
    tables = [name for name in state if name.endswith("relative_position_bias_table")]
    shared = state[tables[0]]
    state = {name: value for name, value in state.items() if name not in tables}
    torch.save({**state, "rel_pos_bias.relative_position_bias_table": shared}, tmp_path / "beit.pth")
    model, _ = started(TINY_BEIT, tmp_path / "beit.pth")
    for block in model.vision_encoder.blocks:
        assert torch.equal(block.attention.position.bias_table, shared)


def test_an_original_beit_without_layer_scale(tmp_path: Path) -> None:
    from tests.unit.pretrained.test_initialise import tower_file

    state = {name: value for name, value in tower_file("beit").items() if ".gamma_" not in name}
    torch.save(state, tmp_path / "beit.pth")
    model, fresh = started(TINY_BEIT, tmp_path / "beit.pth")
    assert torch.equal(model.vision_encoder.class_token.flatten(), state["cls_token"].flatten())
    assert any("gamma" in name or "scale" in name for name in fresh)


def text_options(**changes: Any) -> ModelOptions:
    vision = VisionOptions(stem_channels=(4, 8), num_heads=2, feedforward_width=24)
    text = TextOptions(vocab_size=300, num_layers=4, source=changes.pop("source"))
    return with_towers(ModelOptions(vision=vision, text=text, fusion=FusionOptions(num_layers=2), **changes))


@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize("safe", left_to_slow(["safetensors", "bin"], "safetensors"))
def test_xlm_r_of_transformers(tmp_path: Path, head: bool, safe: str) -> None:
    kind = transformers.XLMRobertaForMaskedLM if head else transformers.XLMRobertaModel
    theirs = shaken(kind(TEXT))
    folder = saved(theirs, tmp_path / "text")
    if safe == "bin":
        from safetensors.torch import load_file

        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    model, fresh = started(text_options(source=str(folder)), folder)
    ids_BL = torch.tensor([[0, 7, 9, 1, 5, 2], [0, 8, 2, 1, 1, 1]])
    mask_BL = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]]).bool()
    expected = same_states(model, getattr(theirs, "roberta", theirs), ids_BL, mask_BL)
    check_fresh(fresh, head)
    if head:
        with torch.no_grad():
            logits = model.decode_with(model.masked_lm_states(expected[mask_BL]), nn.functional.linear)
            torch.testing.assert_close(logits, theirs.lm_head(expected[mask_BL]), atol=1e-5, rtol=1e-4)


def test_the_upper_layers_may_fill_the_fusion_encoder(tmp_path: Path) -> None:
    deep = transformers.XLMRobertaConfig(**{**TEXT.to_dict(), "num_hidden_layers": 6})
    theirs = shaken(transformers.XLMRobertaModel(deep))
    folder = saved(theirs, tmp_path / "text")
    options = text_options(source=str(folder))
    model, fresh = started(options, folder, reach="text_and_fusion")
    for number in range(6):
        stack = model.text_encoder.stack if number < 4 else model.fusion_encoder.stack
        layer = stack.layers[number if number < 4 else number - 4]
        assert torch.equal(layer.feedforward.widen.weight, theirs.encoder.layer[number].intermediate.dense.weight)
    left = {name.split(".")[4] for name in fresh if name.startswith("fusion_encoder")}
    assert left == {"cross_attention", "cross_norm"}
    model, fresh = started(options, folder, reach="text")
    assert {name.split(".")[0] for name in fresh} >= {"fusion_encoder"}
    assert torch.equal(
        model.text_encoder.stack.layers[1].feedforward.widen.weight, theirs.encoder.layer[2].intermediate.dense.weight
    )


def test_an_untied_decoder_starts_from_the_words(tmp_path: Path) -> None:
    theirs = shaken(transformers.XLMRobertaForMaskedLM(TEXT))
    folder = saved(theirs, tmp_path / "text")
    model, _ = started(text_options(source=str(folder), tie_decoder=False), folder)
    assert torch.equal(model.masked_lm_decoder.weight, theirs.roberta.embeddings.word_embeddings.weight)


@pytest.mark.parametrize(("available", "wanted"), [(24, 12), (12, 12), (12, 8), (7, 3)])
def test_layers_are_spread_evenly(available: int, wanted: int) -> None:
    spread = choose_layers("spread", available, wanted, "file")
    sources = sorted(spread)
    assert [spread[source] for source in sources] == list(range(wanted))
    assert sources[-1] == available - 1
    gaps = [after - before for before, after in zip([-1, *sources], sources, strict=False)]
    assert max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize(("layers", "numbers"), [("first", [0, 1, 2]), ("last", [1, 2, 3]), ((3, 0, 2), [3, 0, 2])])
def test_layers_are_chosen(tmp_path: Path, layers: Any, numbers: list[int]) -> None:
    theirs = shaken(transformers.XLMRobertaModel(TEXT))
    folder = saved(theirs, tmp_path / "text")
    options = text_options(source=str(folder))
    options = replace(options, text=replace(options.text, num_layers=3))
    model, _ = started(options, folder, layers=layers)
    for own, number in zip(model.text_encoder.stack.layers, numbers, strict=True):
        assert torch.equal(own.feedforward.widen.weight, theirs.encoder.layer[number].intermediate.dense.weight)


@pytest.mark.parametrize("layers", [(), (0, 1), (0, 1, 1), (0, 1, 4)])
def test_a_list_of_other_layers_is_refused(layers: tuple[int, ...]) -> None:
    with pytest.raises(CheckpointError, match=r"start.text_layers: expected 3 different layers of the 4 of file"):
        choose_layers(layers, 4, 3, "file")


def hf_options(folder: Path) -> ModelOptions:
    vision = VisionOptions(architecture="hf", source=str(folder))
    text = TextOptions(vocab_size=50, num_heads=2, feedforward_width=24)
    return with_towers(ModelOptions(width=WIDTH, vision=vision, text=text))


@pytest.mark.parametrize("name", left_to_slow(CONFIGS, "siglip2", "dinov3", "swinv2"))
def test_every_image_tower_from_its_folder(tmp_path: Path, name: str) -> None:
    theirs = shaken(transformers.AutoModel.from_config(CONFIGS[name]))
    folder = saved(theirs, tmp_path / name)
    model, fresh = started(hf_options(folder), folder)
    assert not any(name.startswith("vision_encoder.tower") for name in fresh if not name.endswith("mask_token"))
    own = dict(theirs.named_parameters())
    for key, value in model.vision_encoder.tower.named_parameters():
        assert torch.equal(value, own[key]), key


def test_the_image_half_of_a_two_tower_file(tmp_path: Path) -> None:
    halves = {"vision_config": {**MLP, "image_size": 32}, "text_config": {**MLP, "vocab_size": 40}}
    theirs = shaken(transformers.CLIPModel(transformers.CLIPConfig(**halves, projection_dim=8)))
    folder = saved(theirs, tmp_path / "clip", max_shard_size="20KB")
    assert json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    model, fresh = started(hf_options(folder), folder)
    assert not any(name.startswith("vision_encoder") for name in fresh)
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        states = theirs.vision_model.post_layernorm(theirs.vision_model(pixels).last_hidden_state)
    torch.testing.assert_close(image_tokens(model, pixels), states[:, 1:])


BERT = transformers.BertConfig(
    hidden_size=48,
    num_hidden_layers=4,
    num_attention_heads=6,
    intermediate_size=96,
    vocab_size=320,
    max_position_embeddings=34,
    type_vocab_size=2,
)
"""As multilingual BERT, LaBSE and E5; a table of words that is longer than the tokenizer's."""


def old_names(folder: Path) -> None:
    """What the first BERT files call the weights of their norms."""
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "model.safetensors")
    for new, old in (("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta")):
        state = {name.replace(new, old): value for name, value in state.items()}
    save_file(state, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("names", left_to_slow(["old", "new"], "new"))
@pytest.mark.parametrize("head", [True, False])
def test_bert_of_transformers(tmp_path: Path, head: bool, names: str) -> None:
    theirs = shaken((transformers.BertForMaskedLM if head else transformers.BertModel)(BERT))
    folder = saved(theirs, tmp_path / "text")
    if names == "old":
        old_names(folder)
    model, fresh = started(text_options(source=str(folder)), folder)
    ids_BL = torch.tensor([[101, 7, 9, 0, 5, 102], [101, 8, 102, 0, 0, 0]])
    mask_BL = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]]).bool()
    expected = same_states(model, getattr(theirs, "bert", theirs), ids_BL, mask_BL)
    check_fresh(fresh, head)
    if head:
        with torch.no_grad():
            logits = model.decode_with(model.masked_lm_states(expected[mask_BL]), nn.functional.linear)
            torch.testing.assert_close(logits, theirs.cls(expected[mask_BL])[:, :300], atol=1e-5, rtol=1e-4)


def hf_text(folder: Path, width: int = hf_texts.WIDTH, **tower: Any) -> ModelOptions:
    text = TextOptions(architecture="hf", source=str(folder), vocab_size=48, tower=tower or None)
    vision = VisionOptions(stem_channels=(4, 8), num_heads=2, feedforward_width=24)
    return with_towers(ModelOptions(width=width, tie_decoder=False, vision=vision, text=text))


def masked_lm(config: transformers.PreTrainedConfig) -> nn.Module:
    head: nn.Module = transformers.AutoModelForMaskedLM.from_config(config)
    return head


@pytest.mark.slow
@pytest.mark.parametrize("name", list(hf_texts.CONFIGS))
@pytest.mark.parametrize("make", [transformers.AutoModel.from_config, masked_lm])
def test_every_text_tower_from_its_folder(tmp_path: Path, name: str, make: Any) -> None:
    """The library's own model, with and without head; two of its words are not in the tokenizer."""
    theirs = shaken(make(hf_texts.CONFIGS[name]))
    folder = saved(theirs, tmp_path / name)
    model, fresh = started(hf_text(folder), folder)
    assert not any(name.startswith(("text_encoder.tower", "text_encoder.embeddings")) for name in fresh)
    ids_BL = torch.tensor([[0, 7, 9, 47, 5, 2], [0, 8, 2, 1, 1, 1]])
    mask_BL = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]]).bool()
    with torch.no_grad():
        expected = theirs.base_model(ids_BL, attention_mask=mask_BL.long()).last_hidden_state
        found = model.encode_texts(ids_BL, mask_BL)
    torch.testing.assert_close(found[mask_BL], expected[mask_BL], atol=1e-5, rtol=1e-4)


def test_the_first_layers_of_a_text_tower(tmp_path: Path) -> None:
    theirs = shaken(transformers.ModernBertModel(hf_texts.CONFIGS["modernbert"]))
    folder = saved(theirs, tmp_path / "text")
    options = hf_text(folder, num_hidden_layers=2)
    assert options.text.tower is not None and len(options.text.tower["layer_types"]) == 2
    model, fresh = started(options, folder)
    assert not any(name.startswith("text_encoder") for name in fresh)
    ids_BL = torch.tensor([[0, 7, 9, 2]])
    with torch.no_grad():
        states = theirs(ids_BL, output_hidden_states=True).hidden_states[2]
        expected = theirs.final_norm(states)
        torch.testing.assert_close(model.encode_texts(ids_BL, ids_BL >= 0), expected, atol=1e-5, rtol=1e-4)


def test_a_text_file_that_does_not_hold_the_tower_is_refused(tmp_path: Path) -> None:
    folder = saved(transformers.ModernBertModel(hf_texts.CONFIGS["modernbert"]), tmp_path / "text")
    other = saved(transformers.BertModel(hf_texts.CONFIGS["bert"]), tmp_path / "other")
    with pytest.raises(CheckpointError, match=r"or the whole text tower that model.text.tower describes"):
        source_weights([other], hf_text(folder))


def test_a_model_of_ours_is_a_source_too(tmp_path: Path) -> None:
    torch.manual_seed(5)
    theirs = CCLMModel(CCLMConfig(**asdict(TINY_SWIN)))
    theirs.save_pretrained(tmp_path / "ours")
    model, fresh = started(TINY_SWIN, tmp_path / "ours")
    assert fresh == []
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in model.state_dict().items())


def test_an_image_file_that_does_not_hold_the_tower_is_refused(tmp_path: Path) -> None:
    folder = saved(transformers.ViTModel(CONFIGS["vit"]), tmp_path / "vit")
    options = hf_options(folder)
    assert options.vision.tower is not None
    deeper = replace(options, vision=replace(options.vision, tower={**options.vision.tower, "num_hidden_layers": 3}))
    with pytest.raises(CheckpointError, match=r"expected Swin, BEiT-v2, XLM-R, BERT or X2-VLM weights"):
        source_weights([folder], deeper)
    with pytest.raises(CheckpointError, match=r"expected model.safetensors or pytorch_model.bin, got a folder without"):
        source_weights([tmp_path], options)
