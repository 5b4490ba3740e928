"""Errors come out of worker processes as they went in."""

from __future__ import annotations

import pickle

import pytest

from cclm.errors import CclmError, ConfigError, DataError, MissingDependencyError, Problem


@pytest.mark.parametrize(
    "error",
    [
        DataError(reason="render_failed", expected="a drawing", got="a blot", do="Draw again.", where="n1"),
        ConfigError(expected="a", got="b", do="c"),
        MissingDependencyError(expected="the package x", got="no such package", do="pip install x"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_survives_a_process_border(error: CclmError) -> None:
    error.__notes__ = ["seen in worker 3"]
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error) and str(again) == str(error)
    assert (again.do, getattr(again, "reason", "")) == (error.do, getattr(error, "reason", ""))


@pytest.mark.parametrize(("got", "end"), [("b", "b. c"), ("b; did you mean d?", "d? c"), ("b. Pack it.", "it. c")])
def test_a_sentence_has_one_end(got: str, end: str) -> None:
    assert str(CclmError(expected="a", got=got, do="c")).endswith(end)


def test_problems_survive_it_too_and_stand_below_each_other() -> None:
    problems = [Problem("f.yaml:3: a: x", kind="rule", key="a", place="f.yaml:3"), Problem("y")]
    error = ConfigError(where="f", expected="no mistake", problems=problems, do="Mend them.")
    again = pickle.loads(pickle.dumps(error))
    assert isinstance(again, ConfigError) and again.problems == error.problems
    assert [(found.kind, found.key, found.place) for found in again.problems] == [
        ("rule", "a", "f.yaml:3"),
        ("", "", ""),
    ]
    assert str(again) == "f: expected no mistake, got 2 problems:\n  - f.yaml:3: a: x\n  - y\nMend them."
    assert ConfigError(expected="a", got="b", do="c").problems == ("b",), "one mistake is one problem"
