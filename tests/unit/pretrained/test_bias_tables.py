from __future__ import annotations

import numpy as np
import pytest
import torch

from cclm.pretrained.bias_tables import resize_bias_table, source_positions, spread


@pytest.mark.parametrize(("source", "target"), [(13, 23), (13, 29), (7, 9), (5, 13)])
def test_cubic_polynomials_are_reproduced(source: int, target: int) -> None:
    """What an interpolating not-a-knot cubic spline is exact for."""
    positions = source_positions(source, target)
    wanted = (np.arange(target) - target // 2).clip(positions[0], positions[-1])
    for power in range(4):
        scale = max(1.0, float(np.abs(positions).max()) ** power)
        found = spread(positions**power, target)
        np.testing.assert_allclose(found / scale, wanted**power / scale, atol=1e-10)


def test_a_spline_is_not_one_polynomial() -> None:
    positions = source_positions(13, 23)
    found = spread(np.abs(positions), 23)
    wanted = np.abs(np.arange(23) - 11.0)
    assert np.abs(found - wanted).max() < 0.3
    assert np.abs(found - wanted).max() > 1e-3


def test_the_ratio_reaches_the_border() -> None:
    positions = source_positions(13, 23)
    assert positions[6] == 0
    assert positions[7] == pytest.approx(1.0)
    assert positions[-1] == pytest.approx(11.0, abs=1e-3)
    np.testing.assert_allclose(positions, -positions[::-1])
    ratios = np.diff(positions[6:])
    np.testing.assert_allclose(ratios[1:] / ratios[:-1], ratios[1] / ratios[0])


def test_a_ratio_at_its_bound_leaves_the_edge_outside() -> None:
    assert source_positions(7, 11)[-1] == pytest.approx(1 + 1.5 + 2.25, abs=1e-4)
    matrix = spread(np.eye(7), 11)
    np.testing.assert_allclose(matrix[0], np.eye(7)[0], atol=1e-4)


def test_rows_and_columns_keep_their_places() -> None:
    down, right = torch.meshgrid(torch.arange(5.0) - 2, torch.arange(5.0) - 2, indexing="ij")
    resized = resize_bias_table(torch.stack([down, right], -1).view(25, 2), 81).view(9, 9, 2)
    assert (resized[1:, :, 0] > resized[:-1, :, 0]).sum() >= 6 * 9
    torch.testing.assert_close(resized[:, :, 0], resized[:, :, 1].T)
    torch.testing.assert_close(resized[:, :, 0], resized[:, :1, 0].expand(9, 9), atol=1e-5, rtol=0)


def test_extra_rows_stay_and_equal_sizes_do_nothing() -> None:
    table = torch.randn(52, 3)
    assert resize_bias_table(table, 52, 3) is table
    resized = resize_bias_table(table, 84, 3)
    assert torch.equal(resized[-3:], table[-3:])
    assert resized.dtype == table.dtype


def test_other_numbers_of_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="expected the square of an odd number of rows, got 52"):
        resize_bias_table(torch.zeros(52, 1), 81)
