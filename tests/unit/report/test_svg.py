from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cclm.report.svg import (
    BarRow,
    Series,
    bar_chart,
    line_chart,
    number_text,
    smoothed,
    spread_labels,
    ticks,
)


@settings(max_examples=80, deadline=None)
@given(st.floats(-1e4, 1e4), st.floats(1e-3, 1e5))
def test_ticks_are_round_few_and_inside(low: float, width: float) -> None:
    found = ticks(low, low + width)
    assert 2 <= len(found) <= 9
    gaps = {round((after - before) / width, 6) for before, after in itertools.pairwise(found)}
    assert len(gaps) <= 1, "evenly spaced"
    assert low - 1e-6 * width - 1e-9 <= found[0] and found[-1] <= low + width * 1.01


def test_ticks_of_a_recall_axis() -> None:
    assert ticks(0.0, 67.0, 5) == [0, 20, 40, 60]
    assert ticks(3.0, 3.0) == [3.0]


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (1725, "1725"), (12000, "12k"), (0.25, "0.25"), (2.5e-5, "2.5e-05")]
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert number_text(value) == text


def test_smoothing_keeps_a_constant_and_the_mean_of_a_zigzag() -> None:
    assert smoothed([3.0] * 7, 2) == pytest.approx([3.0] * 7)
    calm = smoothed([0.0, 1.0] * 10, 3)
    assert max(calm[4:-4]) - min(calm[4:-4]) < 0.1
    assert smoothed([1.0, 5.0], 0) == [1.0, 5.0]


def series(name: str, x: Sequence[float], y: Sequence[float]) -> Series:
    return Series(name=name, points=list(zip(x, y, strict=True)))


def points(svg: str) -> list[list[tuple[float, float]]]:
    return [
        [(float(x), float(y)) for x, y in (pair.split(",") for pair in text.split())]
        for text in re.findall(r'points="([^"]+)"', svg)
    ]


def test_a_falling_loss_falls_from_left_to_right_inside_the_picture() -> None:
    svg = line_chart([series("", [0, 10, 20], [4.0, 3.0, 1.0])])
    ElementTree.fromstring(svg)
    raw, calm = points(svg)
    assert [x for x, _ in raw] == sorted(x for x, _ in raw)
    assert raw[0][1] < raw[1][1] < raw[2][1], "SVG's y grows downwards"
    assert all(0 <= x <= 340 and 0 <= y <= 180 for x, y in raw + calm)


def test_values_that_are_not_finite_are_left_out() -> None:
    svg = line_chart([series("a", [0, 1, 2, 3], [1.0, math.nan, math.inf, 2.0])])
    assert len(points(svg)[0]) == 2 and "nan" not in svg and "inf" not in svg


def test_a_constant_and_a_single_point_can_be_drawn() -> None:
    for y in ([2.0, 2.0], [0.0, 0.0]):
        ElementTree.fromstring(line_chart([series("a", [0, 1], y)]))
    ElementTree.fromstring(line_chart([series("a", [5], [1.0])], y_from_zero=False))


def test_nothing_logged_says_so() -> None:
    assert "nothing logged" in line_chart([series("a", [], [])])


def test_names_are_escaped_and_the_reference_is_named() -> None:
    svg = line_chart([series("<b>", [0, 1], [1, 2])], prior=1.5)
    ElementTree.fromstring(svg)
    assert "&lt;b&gt;" in svg and ">prior<" in svg


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 180), min_size=1, max_size=6))
def test_labels_do_not_cover_each_other_and_stay_inside(heights: list[float]) -> None:
    placed = [y for y, _, _ in spread_labels([(y, str(y), "red") for y in heights], 8, 180)]
    assert all(after - before >= 12 - 1e-9 for before, after in itertools.pairwise(placed))
    assert placed[-1] <= 156 + 1e-9


def test_bars_are_proportional_and_nested() -> None:
    rows = [BarRow(label="A & B", values={"r1": 10.0, "r5": 20.0, "r10": 40.0}, mark=15.0)]
    svg = bar_chart(rows, {"r1": 0.1, "r5": 0.5, "r10": 1.0})
    ElementTree.fromstring(svg)
    widths = [float(width) for width in re.findall(r'<rect [^>]*width="([\d.]+)"', svg)]
    assert widths[0] == pytest.approx(2 * widths[1], rel=0.01) == pytest.approx(4 * widths[2], rel=0.01)
    assert "A &amp; B" in svg and svg.count("<path") == 1


def test_groups_can_share_a_scale_and_marks_are_optional() -> None:
    row = BarRow(label="x", values={"r1": 1.0, "r5": 2.0, "r10": 4.0})
    small, large = (bar_chart([row], {"r10": 1.0}, scale_max=reach) for reach in (10.0, 100.0))
    width = [float(re.findall(r'<rect [^>]*width="([\d.]+)"', svg)[0]) for svg in (small, large)]
    assert width[0] == pytest.approx(10 * width[1], rel=0.02)
    assert "<path" not in small
