"""Cases of a slow test that `make test` leaves to `make test-long`: others of the same test stay."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def left_to_long(cases: Iterable[Any], *long: Any) -> list[Any]:
    """Return the cases, of which some are marked."""
    return [pytest.param(case, marks=pytest.mark.long) if case in long else case for case in cases]
