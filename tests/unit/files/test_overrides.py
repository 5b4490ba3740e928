"""A command line: overrides win over files in any order, values are YAML, texts are what the shell passed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from cclm.errors import Problem
from cclm.files.describe import describe, field_texts
from cclm.files.document import parse_document
from cclm.files.node import COMMAND_LINE, Node, plain
from cclm.files.reading import merged, parse_arguments, with_override
from cclm.files.typed import Converter, split_key
from cclm.types import PathText


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part."""

    count: int = 1
    """How many, in
    two lines."""
    names: tuple[str, ...] = ()
    """What they are called."""
    path: PathText | None = None


@dataclass(frozen=True, kw_only=True)
class Whole(Part):
    """A whole."""

    part: Part | None = None
    """Inside."""
    text: str = "none"
    multipliers: Mapping[str, float] = field(default_factory=dict)
    parts: Mapping[str, Part] = field(default_factory=dict)


def read(arguments: list[str], *files: str) -> tuple[Any, list[Problem]]:
    line = parse_arguments(arguments, "--recipe")
    converter = Converter()
    converter.problems += line.problems
    root = Node(value={}, place=COMMAND_LINE)
    for number, text in enumerate(files):
        root = merged(root, parse_document(text, f"{number}.yaml", converter.problems))
    for key, value in line.overrides:
        root = with_override(root, key, value, Whole)
    return converter.convert(root, Whole), converter.problems


def good(arguments: list[str], *files: str) -> Any:
    found, problems = read(arguments, *files)
    assert problems == []
    return found


@pytest.mark.parametrize(
    "arguments",
    [
        ["--recipe", "r", "--count", "7", "--part.count=8"],
        ["--count=7", "--part.count", "8", "--recipe=r"],
        ["--count", "6", "--recipe", "r", "--part.count", "8", "--count", "7"],
    ],
)
def test_overrides_win_in_any_order_and_the_last_of_them(arguments: list[str]) -> None:
    assert parse_arguments(arguments, "--recipe").files == ("r",)
    found = good(arguments, "count: 1\npart: {count: 2, names: [a]}\n")
    assert found == Whole(count=7, part=Part(count=8, names=("a",)))


@pytest.mark.parametrize(
    ("argument", "text"),
    [
        *(("no", "no"), ("5", "5"), ("null", "null"), ("~", "~"), ("a: b", "a: b"), ("[a", "[a"), ("*x", "*x")),
        *(("'no'", "no"), ('"5"', "5"), ("x #y", "x #y"), ("", ""), ("-1", "-1"), ("%d", "%d"), ("{a: 1}", "{a: 1}")),
    ],
)
def test_where_a_text_is_expected_the_argument_is_it(argument: str, text: str) -> None:
    assert good([f"--text={argument}"]).text == text


def test_values_are_yaml() -> None:
    assert good(["--names", "[a, 'no']"]).names == ("a", "no")
    assert good(["--multipliers", "{a.b: 1e-1}"]).multipliers == {"a.b": 0.1}
    assert good(["--part", "null"], "part: {count: 2}").part is None
    assert good(["--part", "{count: 3}"], "part: {count: 2, names: [a]}").part == Part(count=3), "as a whole"
    assert good(["--path", "null"]).path is None
    _, problems = read(["--names", "[a, no]", "--count", "1.5", "--multipliers", "{a: 1, a: 2}"])
    assert [(problem.kind, problem.place) for problem in problems] == [
        ("duplicate_key", COMMAND_LINE),
        ("wrong_value", COMMAND_LINE),
        ("wrong_value", COMMAND_LINE),
    ]


def test_free_keys_may_hold_dots() -> None:
    found = good(["--multipliers.model.*.norm", "2", "--parts.one.count", "3"], "multipliers: {model.x: 1.0}")
    assert found.multipliers == {"model.x": 1.0, "model.*.norm": 2.0} and found.parts == {"one": Part(count=3)}
    assert split_key(Whole, "part.unknown.more", {}) == ["part", "unknown", "more"]
    assert split_key(Whole, "parts.a.count", {}) == ["parts", "a", "count"]


def test_later_files_win_key_by_key() -> None:
    found = good([], "count: 1\npart: {count: 2, names: [a]}\n", "part: {count: 3}\ntext: x\n")
    assert found == Whole(count=1, part=Part(count=3, names=("a",)), text="x")


def test_a_part_that_is_null_is_begun_by_an_override() -> None:
    assert good(["--part.count", "3"], "part: null\n").part == Part(count=3)


def test_words_that_are_no_option_and_options_without_value() -> None:
    line = parse_arguments(["a", "--count", "--text", "x", "--", "--part.count"], "--recipe")
    assert [problem.key for problem in line.problems] == ["", "count", "", "part.count"]
    assert [key for key, _ in line.overrides] == ["text"]


def test_help_and_print_config_are_seen_anywhere() -> None:
    line = parse_arguments(["--count", "3", "--print_config", "-h"], "--recipe")
    assert line.wants_help and line.wants_config and line.problems == ()
    assert [plain(value) for _, value in line.overrides] == [3]


def test_help_names_type_default_and_docstring_of_every_key() -> None:
    text = describe(Whole)
    assert "--count  a whole number (default: 1)\n    How many, in two lines." in text
    assert "--part.names  a list, each a text (default: [])\n    What they are called." in text
    assert '--text  a text (default: "none")' in text and "--part  a mapping of the options below\n    Inside." in text
    assert field_texts(Whole)["names"] == "What they are called.", "inherited"
