from __future__ import annotations

from typing import Any

import pytest
import torch

from cclm.model.beit import BeitAttention, BeitBlock, BeitEncoder, grid_index_with_class
from cclm.model.options import VisionOptions
from cclm.model.swin import grid_index
from tests.unit.model.tiny import tiny_config, tiny_model

CPU = torch.device("cpu")
OPTIONS: dict[str, Any] = {
    "architecture": "beit",
    "image_size": 16,
    "patch_size": 8,
    "num_layers": 2,
    "num_heads": 2,
    "feedforward_width": 24,
}


def tower(**changes: Any) -> BeitEncoder:
    """With parameters that are not zero."""
    encoder = BeitEncoder(16, VisionOptions(**{**OPTIONS, **changes}))
    for parameter in encoder.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter)
    return encoder.eval()


def test_the_class_token_has_three_rows_of_its_own() -> None:
    index = grid_index_with_class(3, CPU)
    assert torch.equal(index[1:, 1:], grid_index(3, CPU))
    assert (index[0, 1:] == 25).all()
    assert (index[1:, 0] == 26).all()
    assert index[0, 0] == 27


def test_attention_by_hand() -> None:
    attention = BeitAttention(8, 2, 2)
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter)
    tokens = torch.randn(3, 5, 8)
    query, key, value = attention.query_key_value(tokens[1]).chunk(3, -1)
    query, value = query + attention.query_bias.bias, value + attention.value_bias.bias
    heads, index = [], grid_index_with_class(2, CPU)
    for head in range(2):
        part = slice(4 * head, 4 * head + 4)
        bias = attention.position.bias_table[index, head]
        heads.append((query[:, part] @ key[:, part].T / 2 + bias).softmax(-1) @ value[:, part])
    torch.testing.assert_close(attention(tokens, index[None])[1], attention.output(torch.cat(heads, -1)))


def test_a_block_scales_its_sub_layers() -> None:
    block = BeitBlock(16, VisionOptions(**OPTIONS), 0.0).eval()
    tokens, index = torch.randn(2, 5, 16), grid_index_with_class(2, CPU)[None]
    torch.nn.init.zeros_(block.feedforward_scale)
    expected = tokens + 0.1 * block.attention(block.attention_norm(tokens), index)
    torch.testing.assert_close(block(tokens, index), expected)
    torch.nn.init.zeros_(block.attention_scale)
    assert torch.equal(block(tokens, index), tokens)


def test_the_class_token_is_dropped_and_the_mean_stands_in_front() -> None:
    encoder = tower()
    images = torch.randn(2, 3, 16, 16)
    tokens = encoder(images)
    assert tokens.shape == (2, 1 + 4, 16)
    torch.testing.assert_close(tokens[:, 0], tokens[:, 1:].mean(1))
    with torch.no_grad():
        encoder.class_token.add_(1.0)
    assert not torch.equal(encoder(images), tokens), "it is attended to all the same"


def test_gradients_reach_every_parameter() -> None:
    encoder = tower()
    encoder(torch.randn(2, 3, 16, 16)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in encoder.parameters())


def test_the_model_starts_it_as_published() -> None:
    model = tiny_model(vision={**OPTIONS, "layer_scale": 0.3, "initializer_range": 0.02})
    block = model.vision_encoder.blocks[0]
    assert block.attention.query_key_value.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert block.attention.query_key_value.bias is None
    assert block.attention.position.bias_table.abs().max() < 0.1
    assert model.vision_encoder.class_token.any()
    torch.testing.assert_close(block.attention_scale.mean().item(), 0.3, atol=0.1, rtol=0)


def test_a_side_that_is_no_multiple_is_a_sentence() -> None:
    with pytest.raises(ValueError, match=r"expected a multiple of 8 \(the patch size\), got 20"):
        tiny_config(vision={**OPTIONS, "image_size": 20})
