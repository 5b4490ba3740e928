"""One gradient of a table with two readers, against the sum of autograd's two."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from cclm.ops.linear_cross_entropy import linear_cross_entropy_reference
from cclm.ops.word_table import WordTable, add_rows

WORDS, WIDTH, PADDING = 11, 5, 1
IDS = torch.tensor([[3, 3, 4], [10, PADDING, PADDING]])
LABELS = torch.tensor([2, 3, 3, 9, 1, 0])


def parameters(dtype: torch.dtype = torch.float64) -> tuple[nn.Parameter, nn.Parameter]:
    torch.manual_seed(0)
    return nn.Parameter(torch.randn(WORDS, WIDTH, dtype=dtype)), nn.Parameter(torch.randn(WORDS, dtype=dtype))


def network(table: nn.Parameter, bias: nn.Parameter, words: WordTable | None, *, is_tied: bool = True) -> Tensor:
    """Embed, compute something, decode."""
    embedding = functional.embedding if words is None else words.embedding
    loss = linear_cross_entropy_reference if words is None else words.lending(linear_cross_entropy_reference)
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
