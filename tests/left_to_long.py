"""Cases that `make test` leaves to `make test-long`, or `make check` to `make test`: others of the same test stay."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def left_to_long(cases: Iterable[Any], *long: Any) -> list[Any]:
    """Return the cases, of which some are marked."""
    return [pytest.param(case, marks=pytest.mark.long) if case in long else case for case in cases]


def left_to_slow(cases: Iterable[Any], *quick: Any) -> list[Any]:
    """Return the cases, of which all but some are marked."""
    return [case if case in quick else pytest.param(case, marks=pytest.mark.slow) for case in cases]
