"""Errors come out of worker processes as they went in."""

from __future__ import annotations

import pickle

import pytest

from cclm.errors import ConfigError, DataError, MissingDependencyError


@pytest.mark.parametrize(
    "error",
    [
        DataError(reason="render_failed", expected="a drawing", got="a blot", do="Draw again.", where="n1"),
        ConfigError(expected="a", got="b", do="c"),
        MissingDependencyError(expected="the package x", got="no such package", do="pip install x"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_survives_a_process_border(error):
    error.__notes__ = ["seen in worker 3"]
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error) and str(again) == str(error)
    assert (again.do, getattr(again, "reason", "")) == (error.do, getattr(error, "reason", ""))
