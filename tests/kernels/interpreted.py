"""The Triton kernels of the contrastive loss in Triton's interpreter, on CPU tensors, against plain torch.

A process of its own (`test_without_gpu.py` starts it): `TRITON_INTERPRET` is read when a kernel is defined. The
interpreter takes about a millisecond a program whatever it holds, so everything is small. What it cannot show: races,
and what tensor cores round.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cclm.ops import contrastive as ops
from cclm.ops import contrastive_kernels as kernels
from tests.parity.test_contrastive import expect_close, inputs, run

SMALL = kernels.Tile(rows=16, columns=16, features=16, num_warps=4, num_stages=1)
SHAPES = [(1, 1, 1, 1), (1, 37, 5, 1), (37, 20, 17, 7), (20, 37, 40, 20)]
"""Rows, columns, width, identities: none a multiple of a block, and every kind of edge."""


@pytest.fixture(autouse=True)
def kernels_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The op takes its Triton path, as it does on CUDA, in blocks of 16."""
    torch.set_num_threads(1)
    monkeypatch.setattr(ops, "_kernels_for", lambda features: kernels if kernels.fits(features) else None)
    monkeypatch.setattr(kernels.log_sums, "__defaults__", (SMALL,))
    monkeypatch.setattr(kernels.own_gradient, "__defaults__", (SMALL,))


@pytest.mark.parametrize(("temperature", "tolerance"), [(0.5, 5e-6), (0.02, 5e-6), (0.001, 1e-4)])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_loss_and_every_gradient(shape: tuple[int, int, int, int], temperature: float, tolerance: float) -> None:
    """At the upper bound of the clamp, where runs are, and at the lower bound."""
    given = inputs(*shape, torch.float32)
    options = {"label_smoothing": 0.1}
    expected = run(ops.contrastive_reference, given, temperature, **options)
    expect_close(run(ops.contrastive_loss, given, temperature, **options), expected, tolerance)


def guarded(values: Tensor) -> tuple[Tensor, Tensor]:
    """The values inside of a buffer of NaN, and the buffer."""
    buffer = torch.full((values.numel() + 1000,), torch.nan)
    inner = buffer[500 : 500 + values.numel()].view(values.shape)
    inner.copy_(values)
    return inner, buffer


@pytest.mark.parametrize("scale", [2.0, 1000.0])
def test_nothing_outside_of_the_arguments_is_read_or_written(scale: float) -> None:
    """Rows and columns that only fill a block: neither NaN from beyond nor an overflow comes in."""
    num_rows, num_columns, width = 21, 19, 5
    first, second, _, _ = inputs(num_rows, num_columns, width, 19, torch.float32)
    similarity, factor = scale * first @ second.T, torch.tensor([scale])
    logs = similarity.logsumexp(1), similarity.logsumexp(0)
    (rows, _), (others, _), (row_log, _), (column_log, _) = (guarded(each) for each in (first, second, *logs))
    (found_logs, log_buffer), (found, buffer) = guarded(torch.zeros(num_rows)), guarded(torch.zeros(num_rows, width))
    blocks = {"D": width, "BM": SMALL.rows, "BN": SMALL.columns, "BK": SMALL.features}
    kernels.log_sum_kernel[(2,)](rows, others, factor, found_logs, num_rows, num_columns, **blocks)
    kernels.gradient_kernel[(2,)](
        rows, others, factor, row_log, column_log, found, num_rows, num_columns, 1.0, 0.7, WIDTH=16, **blocks
    )
    torch.testing.assert_close(found_logs, logs[0], rtol=1e-5, atol=1e-5)
    weights = (similarity - logs[0][:, None]).exp() + 0.7 * (similarity - logs[1]).exp()
    torch.testing.assert_close(found, weights @ second, rtol=1e-3, atol=1e-4)
    assert log_buffer.isnan().sum() == buffer.isnan().sum() == 1000, (
        "written beyond the output, or read beyond an input"
    )
