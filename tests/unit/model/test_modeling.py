from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from cclm.model.modeling_cclm import CCLMModel
from tests.unit.model.tiny import tiny_config, tiny_images, tiny_model, tiny_texts


def test_forward_compares_all_images_with_all_texts() -> None:
    model = tiny_model()
    ids_BL, mask_BL = tiny_texts()
    output = model(pixel_values=tiny_images(3), input_ids=ids_BL, attention_mask=mask_BL.long())
    assert output.logits_per_image.shape == (3, 5)
    torch.testing.assert_close(output.logits_per_text, output.logits_per_image.T)
    torch.testing.assert_close(output.image_embeds, model.get_image_features(tiny_images(3)))
    torch.testing.assert_close(output.text_embeds, model.get_text_features(ids_BL, mask_BL))
    cosine = functional.cosine_similarity(output.image_embeds[:, None], output.text_embeds[None], dim=-1)
    torch.testing.assert_close(output.logits_per_image, cosine / 0.07)


def test_forward_with_one_view_fills_one_side() -> None:
    model = tiny_model()
    assert list(model(pixel_values=tiny_images())) == ["image_embeds", "pooler_output"]
    assert list(model(input_ids=tiny_texts()[0])) == ["text_embeds"]


def test_score_matches_row_by_row() -> None:
    model = tiny_model()
    ids_BL, mask_BL = tiny_texts()
    logits_B2 = model.score(tiny_images(), ids_BL, mask_BL)
    assert logits_B2.shape == (5, 2)
    torch.testing.assert_close(model.score(tiny_images()[3:4], ids_BL[3:4, :5]), logits_B2[3:4])


@pytest.mark.parametrize("tied", [True, False])
def test_the_decoder_is_tied_if_the_config_says_so(tied: bool) -> None:
    model = CCLMModel(tiny_config(tie_decoder=tied))
    words = model.get_input_embeddings().weight
    assert (model.masked_lm_decoder.weight is words) is tied
    assert words.shape == (50, 16)


@pytest.mark.parametrize("tied", [True, False])
def test_save_and_load_give_the_same_network(tmp_path: Path, tied: bool) -> None:
    model = tiny_model(tie_decoder=tied)
    model.save_pretrained(tmp_path)
    loaded = CCLMModel.from_pretrained(tmp_path)
    assert loaded.masked_lm_decoder.weight is (
        loaded.get_input_embeddings().weight if tied else loaded.masked_lm_decoder.weight
    )
    state = model.state_dict()
    assert loaded.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())
    assert torch.equal(loaded(tiny_images()).image_embeds, model(tiny_images()).image_embeds)


def test_every_module_that_has_parameters_uses_them_in_its_own_forward() -> None:
    model = tiny_model(fusion={"null_memory": True}).train()
    called = set()
    for name, module in model.named_modules():
        if next(iter(module.parameters(recurse=False)), None) is not None:
            module.register_forward_hook(lambda *_, name=name: called.add(name))
    holders = {name.rpartition(".")[0] for name, _ in model.named_parameters(remove_duplicate=False)}
    training_step(model).backward()
    assert called == holders
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.parameters())


def training_step(model: CCLMModel) -> torch.Tensor:
    """Something of every output, one call per module."""
    ids_BL, mask_BL = tiny_texts()
    image_BND, text_BLD = model.encode_images(tiny_images()), model.encode_texts(ids_BL, mask_BL)
    similarity = model.project_images(image_BND) @ model.project_texts(text_BLD, mask_BL).T / model.temperature()
    fused_BLD = model.fuse(text_BLD, mask_BL, image_BND)
    hidden_TD = model.masked_lm_states(fused_BLD[mask_BL][:7])
    logits_TV = model.decode_with(hidden_TD, functional.linear)
    return similarity[0, 0] + model.match_logits(fused_BLD, mask_BL)[0, 1] + logits_TV.log_softmax(1)[0, 3]


def test_concatenated_calls_equal_single_calls() -> None:
    model = tiny_model()
    ids_BL, mask_BL = tiny_texts()
    image_BND, text_BLD = model.encode_images(tiny_images()), model.encode_texts(ids_BL, mask_BL)
    rows = torch.tensor([0, 1, 2, 3, 4, 0, 2, 4])
    together = model.fuse(text_BLD[rows], mask_BL[rows], image_BND[rows.flip(0)])
    torch.testing.assert_close(
        together[5:], model.fuse(text_BLD[rows[5:]], mask_BL[rows[5:]], image_BND[rows.flip(0)[5:]])
    )


def test_initial_weights_follow_the_published_rules() -> None:
    torch.manual_seed(0)
    model = CCLMModel(
        tiny_config(text={"initializer_range": 0.3, "vocab_size": 900}, width=64, fusion={"null_memory": True})
    )
    text_weight = model.text_encoder.stack.layers[0].feedforward.widen.weight
    fusion_weight = model.fusion_encoder.stack.layers[0].cross_attention.query.weight
    head_weight = model.matching_head.widen.weight
    assert text_weight.std().item() == pytest.approx(0.3, rel=0.1)
    assert fusion_weight.abs().max().item() == pytest.approx(64**-0.5, rel=0.05)
    assert head_weight.abs().max().item() == pytest.approx(64**-0.5, rel=0.05)
    words = model.get_input_embeddings().weight
    assert words.std().item() == pytest.approx(0.02, rel=0.05)
    assert words[1].abs().max() == 0
    assert model.temperature().item() == pytest.approx(0.07)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            assert torch.equal(module.weight, torch.ones_like(module.weight))
            assert module.bias.abs().max() == 0


def test_one_projection_can_serve_both_views() -> None:
    model = tiny_model(shared_projection=True)
    image_BND = model.encode_images(tiny_images())
    torch.testing.assert_close(model.project_images(image_BND), model.text_projection(image_BND[:, 0]))
    assert not any(name.startswith("image_projection") for name in model.state_dict())


def test_a_copy_is_independent() -> None:
    model = tiny_model()
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.get_input_embeddings().weight.zero_()
    assert other.masked_lm_decoder.weight.abs().max() == 0
    assert model.masked_lm_decoder.weight.abs().max() > 0
