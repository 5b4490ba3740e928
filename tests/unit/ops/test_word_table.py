"""One gradient of a table with two readers, against the sum of autograd's two."""

from __future__ import annotations

import gc
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from cclm.ops import word_table
from cclm.ops.linear_cross_entropy import linear_cross_entropy, linear_cross_entropy_reference
from cclm.ops.word_table import WordTable, add_rows

WORDS, WIDTH, PADDING = 11, 5, 1
IDS = torch.tensor([[3, 3, 4], [10, PADDING, PADDING]])
LABELS = torch.tensor([2, 3, 3, 9, 1, 0])


def parameters(dtype: torch.dtype = torch.float64) -> tuple[nn.Parameter, nn.Parameter]:
    torch.manual_seed(0)
    return nn.Parameter(torch.randn(WORDS, WIDTH, dtype=dtype)), nn.Parameter(torch.randn(WORDS, dtype=dtype))


def network(
    table: nn.Parameter,
    bias: nn.Parameter,
    words: WordTable | None,
    *,
    is_tied: bool = True,
    loss: Any = linear_cross_entropy_reference,
) -> Tensor:
    """Embed, compute something, decode."""
    embedding = functional.embedding if words is None else words.embedding
    loss = loss if words is None else words.lending(loss)
    hidden = embedding(IDS, table, PADDING).tanh().flatten(0, 1).cumsum(0)
    decoder = table if is_tied else table.detach().clone().requires_grad_()
    return loss(hidden, decoder, bias, LABELS, None).total


def gradients(words: WordTable | None, **options: bool) -> list[Tensor | None]:
    table, bias = parameters()
    network(table, bias, words, **options).backward()
    return [table.grad, bias.grad]


@pytest.mark.parametrize("is_tied", [True, False])
def test_the_gradient_is_the_sum_of_both(is_tied: bool) -> None:
    for ours, reference in zip(gradients(WordTable(), is_tied=is_tied), gradients(None, is_tied=is_tied), strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-12, atol=1e-12)


def test_no_second_tensor_of_the_tables_size_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.aten, "embedding_dense_backward", None)
    assert gradients(WordTable())[0] is not None
    with pytest.raises(TypeError):
        gradients(WordTable(), is_tied=False)


@pytest.mark.parametrize("limit", [WORDS, 6 * WORDS])
def test_a_gradient_that_a_loss_defers_is_the_same(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, product = list[Any](), word_table._product
    monkeypatch.setattr(word_table, "_product", lambda *factors: seen.append(factors) or product(*factors))
    loss = partial(linear_cross_entropy, max_logits=limit)
    table, bias = parameters()
    network(table, bias, WordTable(), loss=loss).mul(2.0).backward()
    assert len(seen) == 1
    for ours, plain in zip([table.grad, bias.grad], gradients(None), strict=True):
        assert plain is not None
        torch.testing.assert_close(ours, 2 * plain, rtol=1e-12, atol=1e-12)


def test_a_deferred_gradient_without_an_embedding_in_the_graph() -> None:
    words, (table, bias) = WordTable(), parameters()
    rows = words.embedding(IDS, table, PADDING)
    hidden = torch.ones(6, WIDTH, dtype=torch.float64, requires_grad=True)
    factor = torch.arange(1.0, 7.0, dtype=torch.float64)
    total = words.lending(linear_cross_entropy)(hidden, table, bias, LABELS, factor).total
    del rows
    total.backward()
    reference, bias = parameters()
    linear_cross_entropy_reference(hidden, reference, bias, LABELS, factor).total.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(table.grad, reference.grad, rtol=1e-12, atol=1e-12)


def test_graphs_do_not_take_each_others_gradients() -> None:
    words, (table, bias) = WordTable(), parameters()
    first = network(table, bias, words)
    abandoned = network(table, bias, words)
    del abandoned
    gc.collect()
    second = network(table, bias, words)
    second.backward()
    first.backward()
    reference, bias = parameters()
    for _ in range(2):
        network(reference, bias, None).backward()
    torch.testing.assert_close(table.grad, reference.grad, rtol=1e-12, atol=1e-12)


def test_a_decoder_alone_or_a_second_one_keeps_its_own_gradient() -> None:
    words, (table, bias) = WordTable(), parameters()
    hidden = torch.ones(6, WIDTH, dtype=torch.float64)
    with torch.no_grad():
        words.embedding(IDS, table, PADDING)
    words.lending(linear_cross_entropy_reference)(hidden, table, bias, LABELS, None).total.backward()
    rows = words.embedding(IDS, table, PADDING).flatten(0, 1)
    loss = words.lending(linear_cross_entropy_reference)
    (loss(rows, table, bias, LABELS, None).total + loss(rows * 2, table, bias, LABELS, None).total).backward()
    reference, bias = parameters()
    rows = functional.embedding(IDS, reference, PADDING).flatten(0, 1)
    total = sum(
        linear_cross_entropy_reference(states, reference, bias, LABELS).total for states in (hidden, rows, rows * 2)
    )
    assert isinstance(total, Tensor)
    total.backward()
    torch.testing.assert_close(table.grad, reference.grad, rtol=1e-12, atol=1e-12)


def test_a_frozen_table_has_none() -> None:
    words, (table, bias) = WordTable(), parameters()
    table.requires_grad_(False)
    network(table, bias, words).backward()
    assert table.grad is None and bias.grad is not None


def test_rows_of_one_word_are_summed_before_they_are_rounded() -> None:
    ids, rows = torch.tensor([2, 0, 2, 5] + [2] * 300), torch.full((304, 1), 2.0**-9)
    table = torch.ones(6, 1, dtype=torch.bfloat16)  # to which 2⁻⁹ adds nothing
    add_rows(table, ids, rows)
    assert table[:, 0].tolist() == [1.0, 1.0, pytest.approx(1 + 302 / 512, abs=2**-8), 1.0, 1.0, 1.0]
