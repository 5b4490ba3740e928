"""The Triton kernels of the contrastive loss in Triton's interpreter, on CPU tensors, against plain torch.

A process of its own (`test_without_gpu.py` starts it): `TRITON_INTERPRET` is read when a kernel is defined. The
interpreter takes about a millisecond a program whatever it holds, so everything is small. What it cannot show: races,
and what tensor cores round.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from cclm.ops import contrastive_blocks as blocks
from cclm.ops import contrastive_kernels as kernels
from cclm.ops import contrastive_operator as operator
from cclm.ops.contrastive import contrastive_loss, contrastive_reference
from cclm.ops.contrastive_operator import log_sums
from tests.parity.test_contrastive import FORMS, expect_close, inputs, run

SMALL = kernels.Tile(rows=16, columns=16, features=16, num_warps=4, num_stages=1)
SHAPES = [(1, 1, 1, 1), (1, 37, 5, 1), (37, 20, 17, 7), (20, 37, 40, 20)]
"""Rows, columns, width, identities: none a multiple of a block, and every kind of edge."""


@pytest.fixture(autouse=True)
def kernels_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The op takes its Triton path, as it does on CUDA, in blocks of 16."""
    torch.set_num_threads(1)
    monkeypatch.setattr(operator, "kernels_for", lambda features: kernels if kernels.fits(features) else None)
    for walk in (kernels.log_sums, kernels.hard_log_sums, kernels.sigmoid_sums, kernels.own_gradient):
        monkeypatch.setattr(walk, "__defaults__", (SMALL,))


@pytest.mark.parametrize(("temperature", "tolerance"), [(0.5, 5e-6), (0.02, 5e-6), (0.001, 1e-4)])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_loss_and_every_gradient(
    shape: tuple[int, int, int, int], form: dict[str, float], temperature: float, tolerance: float
) -> None:
    """At the upper bound of the clamp, where runs are, and at the lower bound; against float64."""
    given = inputs(*shape, torch.float32)
    wide = (given[0].double(), given[1].double(), *given[2:])
    expected = {name: value.float() for name, value in run(contrastive_reference, wide, temperature, **form).items()}
    tolerance *= 4 if "hardness" in form else 1  # exponents are up to 2.5 times as large
    expect_close(run(contrastive_loss, given, temperature, **form), expected, tolerance)


def guarded(values: Tensor) -> tuple[Tensor, Tensor]:
    """The values inside of a buffer of NaN, and the buffer."""
    buffer = torch.full((values.numel() + 1000,), torch.nan)
    inner = buffer[500 : 500 + values.numel()].view(values.shape)
    inner.copy_(values)
    return inner, buffer


FORM_OF = {kernels.SOFTMAX: blocks.Form(), kernels.HARD: blocks.Form(0.5)}
FORM_OF[kernels.SIGMOID] = blocks.Form(bias=torch.tensor([-1.0]))


@pytest.mark.parametrize("scale", [2.0, 1000.0])
@pytest.mark.parametrize("kind", FORM_OF)
def test_nothing_outside_of_the_arguments_is_read_or_written(kind: Any, scale: float) -> None:
    """Rows and columns that only fill a block: neither NaN from beyond nor an overflow comes in."""
    num_rows, num_columns, width, form = 21, 19, 5, FORM_OF[kind]
    first, second, *shown = inputs(num_rows, num_columns, width, 9, torch.float32)
    factor, bias = torch.tensor(scale), torch.tensor([-1.0])
    logs = log_sums(first, second, factor, *shown, hardness=form.hardness, is_kernel_wanted=False)
    other_logs = log_sums(second, first, factor, *shown[::-1], hardness=form.hardness, is_kernel_wanted=False)
    rows, others, row_log, column_log = (guarded(each)[0] for each in (first, second, logs, other_logs))
    own, other = (torch.cat([torch.full((500,), 77), each, torch.full((500,), 77)])[500:-500] for each in shown)
    found, buffer = guarded(torch.zeros(num_rows, width))
    sizes = {"D": width, "BM": SMALL.rows, "BN": SMALL.columns, "BK": SMALL.features}
    kernels.gradient_kernel[(2,)](
        rows, others, factor, bias, own, other, row_log, column_log, found,
        num_rows, num_columns, 1.0, 0.7, form.hardness, FORM=kind, WIDTH=16, **sizes,
    )  # fmt: skip
    side = blocks.Side(first, second, shown[0], shown[1], logs, other_logs, (1.0, 0.7))
    torch.testing.assert_close(found, blocks.own_gradient(side, factor, form), rtol=1e-3, atol=1e-4)
    assert buffer.isnan().sum() == 1000, "written beyond the output, or read beyond an input"
    if kind == kernels.SIGMOID:
        sums, sum_buffer = guarded(torch.zeros(num_rows, 2))
        kernels.sigmoid_sum_kernel[(2,)](rows, others, factor, bias, sums, num_rows, num_columns, **sizes)
        expected = blocks.sigmoid_sums(first, second, factor, bias)
    elif kind == kernels.HARD:
        sums, sum_buffer = guarded(torch.zeros(num_rows, 4))
        kernels.hard_sum_kernel[(2,)](rows, others, factor, own, other, sums, num_rows, num_columns, 0.5, **sizes)
        sums, expected = blocks.hard_logs(sums), logs
    else:
        sums, sum_buffer = guarded(torch.zeros(num_rows))
        kernels.log_sum_kernel[(2,)](rows, others, factor, sums, num_rows, num_columns, **sizes)
        expected = logs
    torch.testing.assert_close(sums, expected, rtol=1e-5, atol=1e-5)
    assert sum_buffer.isnan().sum() == 1000, "written beyond the output, or read beyond an input"
