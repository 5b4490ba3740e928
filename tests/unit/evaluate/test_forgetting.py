"""Before and after fine-tuning, language by language."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest

from cclm.errors import ConfigError
from cclm.evaluate.forgetting import HEAD, changes, render_changes
from cclm.evaluate.published import AVERAGE
from cclm.files.text import FORMATS
from tests.unit.evaluate.test_benchmark_table import stored


def test_each_language_before_and_after(tmp_path: Path) -> None:
    before = stored(tmp_path / "before", {"base": [80]}, protocol="no-fine-tuning")
    after = stored(tmp_path / "after", {"mine": [50, 60]})
    after = [(folder, replace(one, language="de") if one.language == "fr" else one) for folder, one in after]
    (change,) = changes(before, after)
    assert list(change.comparisons) == ["en", "ar", AVERAGE]  # de and fr are in one of the two only
    assert change.before["ar"].mean == 80.0 and change.after["ar"].mean == 55.0
    assert (change.before[AVERAGE].mean, change.after[AVERAGE].mean) == (80.0, 55.0)
    assert change.comparisons[AVERAGE].difference == pytest.approx(-25.0)
    rows = list(csv.reader(io.StringIO(render_changes([change], "csv"))))
    assert rows[0] == list(HEAD) and rows[1][:4] == ["en", "80.00", "55.00 ± 7.07", "-25.00 *"]
    assert json.loads(render_changes([change], "json"))[0]["comparisons"]["ar"]["num_rows"] == 100
    for kind in FORMATS:
        assert "55.00" in render_changes([change], kind)


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    before = stored(tmp_path / "before", {"base": [80]}, protocol="no-fine-tuning")
    with pytest.raises(ConfigError):  # another task
        changes(before, stored(tmp_path / "marvl", {"mine": [50]}, task="marvl"))
    with pytest.raises(ConfigError):  # another metric
        changes(before, stored(tmp_path / "after", {"mine": [50]}), "exact_match")
    several = before + stored(tmp_path / "other", {"other": [70]}, protocol="no-fine-tuning")
    with pytest.raises(ConfigError) as caught:
        changes(several, stored(tmp_path / "after", {"mine": [50]}))
    assert "base" in str(caught.value) and "other" in str(caught.value)


def test_models_measured_in_no_common_language_are_refused(tmp_path: Path) -> None:
    before = stored(tmp_path / "before", {"base": [80]}, protocol="no-fine-tuning")
    after = [(folder, replace(one, language="fi")) for folder, one in stored(tmp_path / "after", {"mine": [50]})[:1]]
    with pytest.raises(ConfigError) as caught:
        changes(before, after)
    assert caught.value.expected.startswith("a language") and "fi" in caught.value.got
