"""A run's kernels reach every attention and every layer norm of a network; without any it computes with plain torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from cclm.model.kernels import PLAIN, Kernels, use_kernels
from tests.tiny_families import TINY, wavy_model


def counting() -> tuple[Kernels, Counter[str]]:
    calls = Counter[str]()

    def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
        calls["attention"] += 1
        return functional.scaled_dot_product_attention(query, key, value, mask, dropout)

    def layer_norm(rows: Tensor, shape: Sequence[int], weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        calls["layer_norm"] += 1
        return functional.layer_norm(rows, shape, weight, bias, eps)

    return Kernels(attention=attention, layer_norm=layer_norm), calls


@pytest.mark.parametrize("family", TINY)
def test_every_attention_and_norm_uses_the_runs_kernels(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = wavy_model(TINY[family]).eval()
    options = TINY[family]
    images = torch.linspace(-1, 1, 2 * 3 * options.vision.image_size**2).view(2, 3, *[options.vision.image_size] * 2)
    ids, mask = torch.arange(5, 15).view(2, 5), torch.ones(2, 5, dtype=torch.bool)

    def compute() -> Tensor:
        image_BND, text_BLD = model.encode_images(images), model.encode_texts(ids, mask)
        return model.match_logits(model.fuse(text_BLD, mask, image_BND), mask)

    with torch.no_grad():
        expected = compute()
        kernels, calls = counting()
        use_kernels(model, kernels)
        plain_calls = Counter[str]()
        norm, product = functional.layer_norm, functional.scaled_dot_product_attention
        monkeypatch.setattr(functional, "layer_norm", lambda *a: plain_calls.update(["layer_norm"]) or norm(*a))
        monkeypatch.setattr(
            functional, "scaled_dot_product_attention", lambda *a: plain_calls.update(["attention"]) or product(*a)
        )
        assert torch.equal(compute(), expected)
    assert calls == plain_calls and min(calls.values()) > 1  # none went another way
    assert not any(type(module) is nn.LayerNorm for module in model.modules())
    use_kernels(model, PLAIN)
