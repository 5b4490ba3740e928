"""The figures count what they say they count. (Their floors are checked by `make check`, not here.)"""

from __future__ import annotations

import ast

import pytest

from tests.architecture.figures import (
    BUDGETS,
    Figure,
    comment_share,
    folder_sizes,
    is_annotated,
    length,
    long_things,
    measure,
    over_budget,
)
from tests.architecture.sources import CODE_FOLDERS, Source, read_sources

CODE = '''"""A module."""


class Thing:
    """A thing."""

    def described(self) -> int:
        """It is described."""
        return 1

    def bare(self, value):
        return value

    def _private(self) -> None:
        pass
'''


def by_name(figures: list[Figure]) -> dict[str, float]:
    return {figure.name: figure.value for figure in figures}


def test_shares_of_a_small_file() -> None:
    numbers = by_name(measure([Source("cclm/a.py", CODE)], [Source("tests/a.py", "x = 1\n\ny = 2\n")]))
    assert numbers["functions with full annotations"] == pytest.approx(100 * 2 / 3)
    assert numbers["public names with a docstring"] == pytest.approx(100 * 3 / 4)
    assert numbers["test lines per code line"] == pytest.approx(2 / 10)
    assert numbers["functions of at most 40 lines"] == 100


@pytest.mark.parametrize(
    ("text", "annotated"),
    [
        ("def f(a: int, *, b: str = '') -> None: ...", True),
        ("def f(self, a: int) -> None: ...", True),
        ("def f(a) -> None: ...", False),
        ("def f(a: int): ...", False),
        ("def f(*values) -> None: ...", False),
        ("async def f(**options) -> None: ...", False),
    ],
)
def test_annotated_means_every_argument_and_the_result(text: str, annotated: bool) -> None:
    function = ast.parse(text).body[0]
    assert isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
    assert is_annotated(function) is annotated


def test_long_functions_and_files_are_named() -> None:
    body = "".join(f"    x{i} = {i}\n" for i in range(60))
    source = Source("cclm/long.py", f"def long() -> None:\n{body}" + "y = 1\n" * 400)
    function = source.tree.body[0]
    assert isinstance(function, ast.FunctionDef)
    assert length(function) == 61
    assert [thing.split(":")[0] for thing in long_things([source])] == ["file of 461 lines", "function of 61 lines"]
    assert by_name(measure([source], []))["functions of at most 40 lines"] == 0


def test_a_figure_holds_at_its_floor() -> None:
    assert Figure("a", 90.0, 90).holds
    assert not Figure("a", 89.99, 90).holds
    assert "LOW" in str(Figure("a", 1.0, 90))


def test_folders_are_measured_and_held_to_their_budget() -> None:
    code = [
        Source("cclm/data/a.py", "x = 1\n" * 9),
        Source("cclm/data/b.py", "y = 1\n"),
        Source("cclm/types.py", "z\n"),
    ]
    sizes = folder_sizes([*code, Source("launch/slurm/c.py", "c\n")])
    assert sizes == {"cclm/data": 10, "cclm": 1, "launch": 1}
    assert over_budget(sizes, {"cclm/data": 9}) == ["cclm/data: 10 lines, at most 9"]
    assert not over_budget(sizes, {"cclm/data": 10})


def test_no_folder_is_over_its_budget_and_every_budget_has_a_folder() -> None:
    sizes = folder_sizes(read_sources(*CODE_FOLDERS))
    assert not over_budget(sizes)
    assert set(BUDGETS) <= set(sizes)


def test_comments_are_counted_outside_of_texts() -> None:
    assert comment_share([Source("a.py", "x = 1  # why\n# here\ny = '# not'\nz = 2\n")]) == 50
