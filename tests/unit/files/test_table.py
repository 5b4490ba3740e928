from __future__ import annotations

from cclm.files.table import table


def test_columns_are_as_wide_as_they_must_be() -> None:
    text = table(("name", "n", "words"), [("a", "10", "one two"), ("longer", "7", "-")], right=("n",))
    assert text.splitlines() == ["name     n  words", "a       10  one two", "longer   7  -"]
