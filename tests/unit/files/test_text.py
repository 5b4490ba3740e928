from __future__ import annotations

import pytest

from cclm.files.text import duration, spans, table, visible


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-3, "0 s"), (0.4, "0 s"), (119, "119 s"), (120, "2 min"), (3599, "59 min"), (12000, "3 h 20 min"),
     (86400, "1 d 0 h"), (187200, "2 d 4 h")],
)  # fmt: skip
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(("numbers", "text"), [([], ""), ([3], "3"), ([2, 0, 1, 7], "0-2,7"), ([1, 3, 4], "1,3-4")])
def test_spans(numbers: list[int], text: str) -> None:
    assert spans(numbers) == text


def test_table() -> None:
    rows = [["a", "1", "some words"], ["long name", "12", ""]]
    assert table(["name", "n", "said"], rows, right=["n"]) == (
        "name        n  said\na           1  some words\nlong name  12"
    )


@pytest.mark.parametrize(("text", "shown"), [("größe 大 a", "größe 大 a"), ("\x1b[2J\n\u202e", r"\x1b[2J\n\u202e")])
def test_visible(text: str, shown: str) -> None:
    assert visible(text) == shown
