from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from cclm.model.layers import CrossAttention, LayerStack, SelfAttention, TransformerLayer, merge_heads, split_heads
from cclm.model.options import LayerOptions
from cclm.model.packing import PaddedLayout, text_layout
from cclm.model.reading import Reading

OPTIONS = LayerOptions(num_layers=1, num_heads=2, feedforward_width=12)


def by_hand(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention of one sequence, head by head, from its definition."""
    outputs = []
    for q, k, v in zip(query.chunk(2, -1), key.chunk(2, -1), value.chunk(2, -1), strict=True):
        scores = q @ k.T / math.sqrt(q.shape[-1])
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        outputs.append(scores.softmax(-1) @ v)
    return torch.cat(outputs, -1)


def test_heads_split_and_merge() -> None:
    states = torch.randn(2, 3, 8)
    assert split_heads(states, 4).shape == (2, 4, 3, 2)
    assert torch.equal(split_heads(states, 4)[:, 1], states[:, :, 2:4])
    assert torch.equal(merge_heads(split_heads(states, 4)), states)


def test_self_attention_is_attention_by_definition_and_never_sees_padding() -> None:
    attention = SelfAttention(8, OPTIONS)
    mask_BL = torch.tensor([[True, True, True, False], [True, True, False, False]])
    states_BLD = torch.randn(2, 4, 8)
    for name in ("padded", "packed", "grouped"):
        layout = text_layout(mask_BL, name)
        rectangle = layout.to_rectangle(attention(layout.to_rows(states_BLD), layout=layout))
        for row, length in enumerate((3, 2)):
            query, key, value = attention.query_key_value(states_BLD[row, :length]).chunk(3, -1)
            torch.testing.assert_close(rectangle[row, :length], attention.output(by_hand(query, key, value)))


def test_cross_attention_reads_the_memory_under_its_mask() -> None:
    attention = CrossAttention(8, OPTIONS, null_memory=False)
    layout = PaddedLayout(batch=1, length=3, mask_BL=None)
    rows, memory, mask = torch.randn(3, 8), torch.randn(1, 5, 8), torch.tensor([[True, True, False, True, False]])
    key, value = attention.key_value(memory[0]).chunk(2, -1)
    expected = attention.output(by_hand(attention.query(rows), key, value, mask))
    torch.testing.assert_close(attention(rows, memory, reading=Reading(layout=layout, mask_BN=mask)), expected)


def test_a_null_key_takes_attention_and_gives_nothing() -> None:
    attention = CrossAttention(8, OPTIONS, null_memory=True)
    layout = PaddedLayout(batch=1, length=3, mask_BL=None)
    rows, memory = torch.randn(3, 8), torch.randn(1, 5, 8)
    assert attention.null_key is not None
    nn.init.normal_(attention.null_key)
    key, value = attention.key_value(memory[0]).chunk(2, -1)
    with_null = by_hand(
        attention.query(rows), torch.cat([key, attention.null_key[None]]), torch.cat([value, torch.zeros(1, 8)])
    )
    torch.testing.assert_close(attention(rows, memory, reading=Reading(layout=layout)), attention.output(with_null))
    masked = attention(rows, memory, reading=Reading(layout=layout, mask_BN=torch.zeros(1, 5, dtype=torch.bool)))
    torch.testing.assert_close(masked, attention.output(torch.zeros(3, 8)))


def test_norms_stand_before_or_after() -> None:
    layout, rows = PaddedLayout(batch=1, length=3, mask_BL=None), torch.randn(3, 8)
    pre = TransformerLayer(8, OPTIONS)
    middle = rows + pre.self_attention(pre.self_norm(rows), layout=layout)
    torch.testing.assert_close(pre(rows, layout=layout), middle + pre.feedforward(pre.feedforward_norm(middle)))
    post = TransformerLayer(8, LayerOptions(num_heads=2, feedforward_width=12, norm_position="post"))
    middle = post.self_norm(rows + post.self_attention(rows, layout=layout))
    torch.testing.assert_close(post(rows, layout=layout), post.feedforward_norm(middle + post.feedforward(middle)))


def test_the_feed_forward_uses_the_exact_gelu() -> None:
    layer = TransformerLayer(8, OPTIONS).feedforward
    rows = torch.randn(3, 8)
    hidden = layer.widen(rows)
    exact = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    torch.testing.assert_close(layer(rows), layer.narrow(exact))


def test_only_a_pre_norm_stack_ends_with_a_norm() -> None:
    assert LayerStack(8, OPTIONS).final_norm is not None
    assert LayerStack(8, LayerOptions(num_heads=2, norm_position="post")).final_norm is None
    empty = LayerStack(8, LayerOptions(num_layers=0))
    rows = torch.randn(3, 8)
    expected = functional.layer_norm(rows, (8,))
    torch.testing.assert_close(empty(rows, layout=PaddedLayout(batch=1, length=3, mask_BL=None)), expected)


def test_dropout_works_in_training_only() -> None:
    layer = TransformerLayer(8, LayerOptions(num_heads=2, dropout=0.5, attention_dropout=0.5))
    layout, rows = PaddedLayout(batch=1, length=3, mask_BL=None), torch.randn(3, 8)
    assert not torch.equal(layer(rows, layout=layout), layer(rows, layout=layout))
    layer.eval()
    assert torch.equal(layer(rows, layout=layout), layer(rows, layout=layout))


def test_the_epsilon_is_the_configs() -> None:
    layer = TransformerLayer(8, LayerOptions(num_heads=2, norm_eps=1e-12), cross=True)
    assert {module.eps for module in layer.modules() if isinstance(module, nn.LayerNorm)} == {1e-12}
