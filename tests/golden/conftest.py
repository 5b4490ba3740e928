from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.golden.sets import GoldenSet, golden_set, set_parameters


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Many small tests, half a minute together: slow as a whole; our own recorded values stay quick."""
    for item in items:
        if item.path.parent == Path(__file__).parent and item.path.name != "test_own.py":
            item.add_marker(pytest.mark.slow)


@pytest.fixture(params=set_parameters())
def golden(request: pytest.FixtureRequest) -> GoldenSet:
    """Each set in turn."""
    folder: Path = request.param
    return golden_set(folder)


@pytest.fixture(autouse=True)
def as_on_a_rank(one_thread: None) -> None:
    """On one thread."""
