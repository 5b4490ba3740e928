"""Hard negatives drawn in blocks: the same draws as from the whole matrix, and the published distribution."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from cclm.objectives.matching import negative_weights
from cclm.ops import hard_negatives
from cclm.ops.hard_negatives import draw_in_blocks, draw_in_blocks_reference

ALMOST_ONE = 1.0 - 2.0**-53


def given(rows: int, others: int, group: int, identities: int, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Rows of some groups of candidates; the first two draw the lowest and the highest number."""
    first, second = (functional.normalize(torch.randn(size, 5), dim=1).to(dtype) for size in (rows, others))
    uniform = torch.rand(rows, dtype=torch.float64)
    uniform[0], uniform[1:2] = 0.0, ALMOST_ONE
    return {
        "rows_FE": first,
        "others_NE": second,
        "identity_F": torch.randint(0, identities, (rows,)),
        "identity_N": torch.arange(others) % identities,
        "group_F": torch.randint(0, others // group, (rows,)),
        "group_N": torch.arange(others) // group,
        "uniform_F": uniform,
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [0.0, 2.0, 50.0, 1000.0])
@pytest.mark.parametrize("columns", [1, 7, 1024])
@pytest.mark.parametrize("shape", [(150, 38, 19, 7), (150, 45, 45, 45), (40, 12, 3, 2), (1, 2, 2, 2)])
def test_the_draw_is_that_of_the_whole_matrix(
    shape: tuple[int, int, int, int], columns: int, scale: float, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hard_negatives, "COLUMNS_PER_BLOCK", columns)
    inputs = given(*shape, dtype)
    found = draw_in_blocks(**inputs, scale=scale)
    assert torch.equal(found, draw_in_blocks_reference(**inputs, scale=scale))
    assert torch.equal(inputs["group_N"][found], inputs["group_F"])
    assert (inputs["identity_N"][found] != inputs["identity_F"]).all()


@pytest.mark.parametrize("draw", [draw_in_blocks, draw_in_blocks_reference])
def test_draws_follow_the_published_weights(draw: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of even numbers in [0, 1), each candidate gets its share, to one of them."""
    monkeypatch.setattr(hard_negatives, "COLUMNS_PER_BLOCK", 4)
    inputs, count = given(1, 12, 6, 5), 20_000
    similarity = 3.0 * inputs["rows_FE"] @ inputs["others_NE"][6:].T
    weights = negative_weights(similarity, inputs["identity_F"][:, None] == inputs["identity_N"][6:])[0]
    inputs["group_F"][:] = 1
    inputs |= {
        name: inputs[name].expand(count, *inputs[name].shape[1:]) for name in ("rows_FE", "identity_F", "group_F")
    }
    inputs["uniform_F"] = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    shares = torch.bincount(draw(**inputs, scale=3.0), minlength=12) / count
    torch.testing.assert_close(shares[6:], weights / weights.sum(), atol=1e-4, rtol=0)
    assert shares[:6].sum() == 0


def test_a_row_without_candidate_gets_any_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hard_negatives, "COLUMNS_PER_BLOCK", 4)
    found = draw_in_blocks(**given(30, 10, 5, 1), scale=1.0)
    assert ((found >= 0) & (found < 10)).all()


def test_the_matrix_is_never_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hard_negatives, "COLUMNS_PER_BLOCK", 16)
    largest, inputs = 0, given(32, 256, 256, 256)

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            for value in result if isinstance(result, tuple | list) else [result]:
                largest = max(largest, value.numel() if isinstance(value, Tensor) else 0)
            return result

    with Watch():
        draw_in_blocks(**inputs, scale=1.0)
    assert largest == 32 * 16, "a block"


@pytest.mark.slow
def test_a_compiler_sees_through_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hard_negatives, "COLUMNS_PER_BLOCK", 16)
    inputs = given(20, 38, 19, 7)
    compiled: Any = torch.compile(draw_in_blocks, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(**inputs, scale=20.0), draw_in_blocks(**inputs, scale=20.0))
