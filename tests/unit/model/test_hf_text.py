from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cclm.engine.parts import freeze
from cclm.model.blocks import checkpoint_activations
from cclm.model.modeling_cclm import CCLMModel
from tests.left_to_long import left_to_slow
from tests.unit.model.hf_texts import CONFIGS, WIDTH, shaken, text_options
from tests.unit.model.tiny import tiny_config, tiny_images, tiny_texts

LENGTHS = (5, 1, 12, 3)


def hf_model(name: str, width: int = WIDTH, **changes: Any) -> CCLMModel:
    """A tiny model around a text tower; ELECTRA's words are narrower than its states."""
    tied = {"tie_decoder": name != "electra" and width == WIDTH}
    torch.manual_seed(0)
    model = CCLMModel(tiny_config(width=width, text={**text_options(name), **changes}, **tied))
    shaken(model)
    return model


def gradients(model: CCLMModel, ids_BL: Tensor, mask_BL: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    model.encode_texts(ids_BL, mask_BL).square().sum().backward()
    named = model.text_encoder.named_parameters()
    return {name: value.grad.clone() for name, value in named if value.grad is not None}


@pytest.mark.parametrize("name", left_to_slow(CONFIGS, "modernbert", "mdeberta"))
def test_padding_changes_nothing(name: str) -> None:
    model = hf_model(name)
    ids_BL, mask_BL = tiny_texts(LENGTHS, columns=16)
    with torch.no_grad():
        together_BLD = model.encode_texts(ids_BL, mask_BL)
        for row, length in enumerate(LENGTHS):
            alone_BLD = model.encode_texts(ids_BL[row : row + 1, :length], mask_BL[row : row + 1, :length])
            torch.testing.assert_close(together_BLD[row, :length], alone_BLD[0], atol=1e-5, rtol=1e-4)
    assert not together_BLD[~mask_BL].any()
    other_BL = torch.where(mask_BL, ids_BL, 7)
    with torch.no_grad():
        torch.testing.assert_close(model.encode_texts(other_BL, mask_BL), together_BLD, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", left_to_slow(CONFIGS, "modernbert", "mdeberta"))
def test_every_weight_has_the_gradient_that_it_has_without_padding(name: str) -> None:
    model = hf_model(name)
    ids_BL, mask_BL = tiny_texts((6, 6))
    plain = gradients(model, ids_BL, mask_BL)
    wide_BL, wide_mask_BL = (torch.nn.functional.pad(cells, (0, 8), value=1) for cells in (ids_BL, mask_BL.long()))
    wide_mask_BL[:, 6:] = 0
    padded = gradients(model, wide_BL, wide_mask_BL.bool())
    trained = {name for name, one in model.text_encoder.named_parameters() if one.requires_grad}
    assert trained == plain.keys() == padded.keys()
    largest = max(value.abs().max() for value in plain.values())
    for key, value in plain.items():
        torch.testing.assert_close(padded[key], value, atol=1e-5 * float(largest), rtol=1e-4, msg=key)
    assert plain["embeddings.words.weight"].any()


@pytest.mark.parametrize("name", left_to_slow(CONFIGS, "modernbert", "mdeberta"))
def test_a_saved_model_computes_the_same(tmp_path: Path, name: str) -> None:
    model = hf_model(name, width=16)
    model.save_pretrained(tmp_path)
    loaded = CCLMModel.from_pretrained(tmp_path).eval()
    assert loaded.config.options() == model.config.options()
    ids_BL, mask_BL = tiny_texts(LENGTHS)
    with torch.no_grad():
        assert torch.equal(loaded.encode_texts(ids_BL, mask_BL), model.encode_texts(ids_BL, mask_BL))


@pytest.mark.parametrize("name", ["modernbert", "mdeberta"])
def test_words_are_tied_to_the_masked_lm_decoder(name: str) -> None:
    model = hf_model(name)
    assert model.masked_lm_decoder is not None
    assert model.masked_lm_decoder.weight is model.get_input_embeddings().weight
    assert not any("word_embeddings" in key or "tok_embeddings" in key for key, _ in model.named_parameters())


def test_an_image_and_a_text_are_fused() -> None:
    model = hf_model("modernbert", pooling="mean_first")
    ids_BL, mask_BL = tiny_texts((5, 3))
    with torch.no_grad():
        text_BLD = model.encode_texts(ids_BL, mask_BL)
        torch.testing.assert_close(text_BLD[1, 0], hf_states(model, ids_BL, mask_BL)[1, :3].mean(0))
        assert model.score(tiny_images(2), ids_BL, mask_BL).isfinite().all()


def hf_states(model: CCLMModel, ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
    words_BLD = model.get_input_embeddings()(ids_BL)
    states: Tensor = model.text_encoder.tower(inputs_embeds=words_BLD, attention_mask=mask_BL.long())[0]
    return states


@pytest.mark.parametrize("name", ["modernbert", "eurobert", "mdeberta"])
@pytest.mark.parametrize("mode", ["selective", "full"])
def test_activation_checkpointing_repeats_its_layers(name: str, mode: str) -> None:
    ids_BL, mask_BL = tiny_texts((6, 4))
    expected = gradients(hf_model(name), ids_BL, mask_BL)
    model = hf_model(name)
    checkpoint_activations(model.text_encoder, mode)
    found = gradients(model, ids_BL, mask_BL)
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in found.items())


@pytest.mark.parametrize("name", ["modernbert", "eurobert"])
def test_a_change_of_precision_does_not_round_what_positions_are_computed_with(name: str) -> None:
    model = hf_model(name)
    before = {key: value.clone() for key, value in model.text_encoder.tower.named_buffers()}
    model.to(torch.bfloat16).to(torch.float32)
    after = dict(model.text_encoder.tower.named_buffers())
    assert any("inv_freq" in key for key in before)
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert {value.dtype for value in model.bfloat16().parameters()} == {torch.bfloat16}


def test_its_lower_layers_can_be_frozen() -> None:
    model = hf_model("modernbert")
    freeze(model, ["text_encoder.embeddings", "text_encoder.tower.embeddings", "text_encoder.tower.layers.0"])
    found = gradients(model, *tiny_texts((6, 4)))
    assert {name.split(".")[2] for name in found if name.startswith("tower.layers")} == {"1", "2"}
    assert "embeddings.words.weight" not in found


def test_what_cannot_be_is_a_sentence() -> None:
    with pytest.raises(ValueError, match=r"texts: expected at most 40 tokens \(text.max_positions\), got 41"):
        hf_model("modernbert").encode_texts(*tiny_texts((41,)))
    with pytest.raises(ValueError, match="text: expected a tower for architecture"):
        tiny_config(text={"architecture": "hf"})
    with pytest.raises(ValueError, match=r'text.tower: expected none for architecture "own", got one'):
        tiny_config(text={**text_options("bert"), "architecture": "own"})
    with pytest.raises(ValueError, match=r"tie_decoder: expected words of width 32 \(width\), got 16 from text.tower"):
        CCLMModel(tiny_config(width=32, text=text_options("electra")))
