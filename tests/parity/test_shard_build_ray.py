"""Ray, where it is installed, writes the bytes of one process; where it is not, a sentence says how to get it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from cclm.errors import MissingDependencyError
from shards.build import build_sets
from tests.unit.shards.tiny_corpora import bytes_below, image_plan, text_plan


@pytest.mark.slow
def test_ray_writes_the_bytes_of_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("PYTHONPATH", str(Path.cwd()))
    plans = [image_plan(bad=(3, 11)), text_plan()]
    build_sets(plans, tmp_path / "one", command="test")
    build_sets(plans, tmp_path / "ray", workers=2, executor="ray", command="test")
    assert bytes_below(tmp_path / "ray") == bytes_below(tmp_path / "one")


def test_without_ray_a_sentence_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    with pytest.raises(MissingDependencyError) as caught:
        build_sets([image_plan()], tmp_path, executor="ray")
    assert str(caught.value) == (
        "expected the package ray (for --executor ray), got no such package. "
        'pip install "cclm-pretraining[ray]", or leave --executor out.'
    )
