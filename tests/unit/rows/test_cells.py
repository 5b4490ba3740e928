"""What may stand in a cell, and what becomes of it: used as it is, or refused with its reason."""

from __future__ import annotations

import datetime
import decimal
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from cclm.errors import DataError
from cclm.rows import cells

NOT_TEXTS = [
    None,
    True,
    False,
    0,
    7.5,
    math.nan,
    {"raw": "a box"},
    [],
    ["a"],
    ("a",),
    object(),
    np.float64(1),
    10**5000,
]


def reason_of(function: Callable[..., Any], *arguments: Any) -> str:
    with pytest.raises(DataError) as caught:
        function(*arguments)
    assert " at 0x" not in caught.value.got and len(caught.value.got) < 200
    return caught.value.reason


@pytest.mark.parametrize("cell", NOT_TEXTS, ids=lambda cell: type(cell).__name__)
def test_only_a_text_is_a_text(cell: Any) -> None:
    assert reason_of(cells.text, cell) == "line_broken"


def test_texts_are_whole_unicode() -> None:
    assert cells.text("ä\u2028\r\n ") == "ä\u2028\r\n "
    assert cells.text("ä".encode()) == "ä" and cells.text("\ufeffä") == "ä" and cells.text(np.str_("x")) == "x"
    for broken in ("x\ud83d", "a\0b", b"\xff", b"a\0"):
        assert reason_of(cells.text, broken) == "text_encoding"


def test_one_text_or_several() -> None:
    assert cells.texts("A red box") == ["A red box"] and cells.texts(["a", "b"]) == ["a", "b"] == cells.texts(
        ("a", "b")
    )
    for cell in ({"en": "x"}, ["a", None], [["a"]], 1):
        assert reason_of(cells.texts, cell) == "line_broken"


@pytest.mark.parametrize(
    ("cell", "named", "captions"),
    [
        ({"en": "A red box"}, None, {"en": ["A red box"]}),
        ({"en": ["a", "b"], "de": None, "EN": "c"}, None, {"en": ["a", "b", "c"]}),
        ([("en", "box"), ("de", "Kiste")], None, {"en": ["box"], "de": ["Kiste"]}),
        ([{"en": "one"}, {"en": "two", "pt_BR": ["três"]}], None, {"en": ["one", "two"], "pt-BR": ["três"]}),
        ("a dog", "EN", {"en": ["a dog"]}),
        (["a", "b"], "en", {"en": ["a", "b"]}),
        (None, None, {}),
    ],
)
def test_captions_in_every_form(cell: Any, named: Any, captions: dict[str, list[str]]) -> None:
    assert cells.captions(cell, named) == captions


@pytest.mark.parametrize(
    ("cell", "named", "reason"),
    [
        ("A red box", None, "language_unknown"),
        ({"": "x"}, None, "language_unknown"),
        ({"english": "x"}, None, "language_unknown"),
        ({"en": 7}, None, "line_broken"),
        ({"en": {"de": "x"}}, None, "line_broken"),
        ({1: "x"}, None, "line_broken"),
        (7, "en", "line_broken"),
        (True, "en", "line_broken"),
        (True, None, "line_broken"),
        ([["en", "x"]], "en", "line_broken"),
    ],
)
def test_captions_that_are_none(cell: Any, named: Any, reason: str) -> None:
    assert reason_of(cells.captions, cell, named) == reason


@pytest.mark.parametrize("cell", [None, "", " ", "xx", False, 7, ["en"], {"en": 1}])
def test_what_is_no_language(cell: Any) -> None:
    assert reason_of(cells.language, cell) in ("language_unknown", "line_broken")


def test_numbers() -> None:
    good = [(1, 1.0), (1.5, 1.5), ("1.5", 1.5), (" 2 ", 2.0), (decimal.Decimal("0.5"), 0.5), (np.float64(3), 3.0)]
    assert [cells.number(cell) for cell, _ in good] == [value for _, value in good]
    for bad in (
        None,
        "",
        "1,5",
        "1_0",
        "x",
        True,
        math.nan,
        math.inf,
        "nan",
        "1e999",
        10**400,
        [1],
        decimal.Decimal("NaN"),
    ):
        assert reason_of(cells.number, bad) == "line_broken"
    assert [cells.whole_number(cell) for cell in (7, "7", 7.0, 2**62 + 1)] == [7, 7, 7, 2**62 + 1]
    for bad in (7.5, -1, "7.5", True, None):
        assert reason_of(cells.whole_number, bad) == "line_broken"


def test_identifiers() -> None:
    day = datetime.date(2024, 1, 2)
    good = [
        ("x", "x"),
        (7, "7"),
        (7.0, "7"),
        (0.5, "0.5"),
        (True, "true"),
        (day, "2024-01-02"),
        (None, ""),
        (math.nan, ""),
    ]
    assert [cells.identifier(cell) for cell, _ in good] == [value for _, value in good]
    for bad in ([1], {"a": 1}, math.inf, 10**400, "\ud83d"):
        assert reason_of(cells.identifier, bad) in ("line_broken", "text_encoding")
    assert cells.identifiers({"a": 1, "b": None}, ("a", "b", "c")) == {"a": "1"}


def test_boxes() -> None:
    assert cells.box([0, "1", 2.5, 3]) == (0, 1, 2.5, 3)
    for bad in (None, "0123", [1, 2, 3], [1, 2, 3, None], [1, 2, 3, math.nan], {"x": 1}):
        assert reason_of(cells.box, bad) == "line_broken"
