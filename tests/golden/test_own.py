from __future__ import annotations

import json

import pytest

from tests.golden.own import CASES, FILE, run_own
from tests.tiny_families import TINY


@pytest.mark.parametrize("layout", list(TINY))
@pytest.mark.parametrize("case", CASES)
def test_own_values(layout: str, case: str) -> None:
    expected = json.loads(FILE.read_text(encoding="utf-8"))[layout][case]
    _, found = run_own(layout, case)
    assert found.keys() == expected.keys()
    assert {"loss_mlm"} < found.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=2e-4, abs=1e-5), name
