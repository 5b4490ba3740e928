"""Kernels on a GPU against their references in float64: what `python -m benchmarks.gpu` checks, one by one."""

from __future__ import annotations

import pytest
import torch

from benchmarks.gpu import kernels
from cclm.ops.choice import Network, why_not_varlen
from cclm.ops.contrastive_operator import kernels_for

pytestmark = pytest.mark.gpu
DTYPES = [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("form", kernels.CONTRASTIVE_FORMS)
@pytest.mark.parametrize("temperature", kernels.TEMPERATURES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", kernels.CONTRASTIVE_SHAPES)
def test_contrastive(shape: kernels.Shape, dtype: torch.dtype, temperature: float, form: dict[str, float]) -> None:
    error = kernels.contrastive_error(shape, dtype, temperature, torch.device("cuda"), **form)
    assert error <= kernels.contrastive_tolerance(temperature, **form)


@pytest.mark.parametrize(("width", "is_used"), [(256, True), (300, False)])
def test_the_kernels_take_features_up_to_their_width(width: int, is_used: bool) -> None:
    features = torch.ones(2, width, device="cuda")
    assert (kernels_for(features) is not None) == is_used, "torch's CUDA builds bring Triton"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", kernels.HEAD_SHAPES)
def test_linear_cross_entropy(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    assert kernels.head_error(shape, dtype, torch.device("cuda")) <= kernels.HEAD_TOLERANCE[dtype]


@pytest.mark.parametrize(("lengths", "heads", "width"), kernels.VARLEN_SHAPES)
def test_attention_of_sequences_of_any_length(lengths: tuple[int, ...], heads: int, width: int) -> None:
    device = torch.device("cuda")
    if trouble := why_not_varlen(device, Network(head_widths=(width,))):
        pytest.skip(trouble)
    assert kernels.varlen_error(lengths, heads, width, device) <= kernels.VARLEN_TOLERANCE
