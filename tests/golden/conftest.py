from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.golden.sets import GoldenSet, golden_set, set_parameters


@pytest.fixture(params=set_parameters())
def golden(request: pytest.FixtureRequest) -> GoldenSet:
    """Each set in turn."""
    folder: Path = request.param
    return golden_set(folder)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
