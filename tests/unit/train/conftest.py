"""What holds for every test of the training."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def as_on_a_rank(one_thread: None) -> None:
    """On one thread."""
