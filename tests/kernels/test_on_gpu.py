"""The fused losses on a GPU against their references there. No machine has run this yet."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cclm.ops import contrastive as ops
from cclm.ops.linear_cross_entropy import linear_cross_entropy, linear_cross_entropy_reference
from tests.parity.test_contrastive import expect_close, inputs, run

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("temperature", [0.5, 0.02])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (61, 131, 17, 5), (1000, 300, 256, 300)])
def test_contrastive(shape: tuple[int, int, int, int], temperature: float) -> None:
    """By the kernels, against float64: products in three passes of tf32 are as good as float32's."""
    given = tuple(value.cuda() for value in inputs(*shape, torch.float32))
    assert ops._kernels_for(given[0]) is not None, "torch's CUDA builds bring Triton"
    wide = (given[0].double(), given[1].double(), *given[2:])
    exact = {name: value.float() for name, value in run(ops.contrastive_reference, wide, temperature).items()}
    expect_close(run(ops.contrastive_loss, given, temperature), exact, 2e-5)


def test_wide_features_take_the_plain_walk() -> None:
    given = tuple(value.cuda() for value in inputs(50, 70, 300, 9, torch.float32))
    assert ops._kernels_for(given[0]) is None
    expect_close(run(ops.contrastive_loss, given, 0.05), run(ops.contrastive_reference, given, 0.05), 2e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_linear_cross_entropy(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    draw = [torch.randn(*shape, generator=generator) for shape in ((100, 64), (5003, 64), (5003,))]
    label = torch.randint(0, 5003, (100,), generator=generator).cuda()
    results: list[list[Tensor]] = []
    for loss, options in ((linear_cross_entropy, {"max_logits": 37 * 5003}), (linear_cross_entropy_reference, {})):
        given = [value.to("cuda", dtype).requires_grad_() for value in draw]
        total, loss_T, correct_T = loss(*given, label, torch.full((100,), 0.01, device="cuda"), **options)
        total.backward()  # type: ignore[no-untyped-call]
        results.append([loss_T, correct_T, *(value.grad for value in given if value.grad is not None)])
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
