"""The benchmark runs and says what it must; how fast it is, is not tested."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import shards
from benchmarks.samples import photograph, sentence_pairs


def test_the_pictures_are_like_those_of_the_published_baseline() -> None:
    sizes = [len(photograph(number)) for number in range(6)]
    assert 55_000 < np.mean(sizes) < 90_000
    picture = Image.open(io.BytesIO(photograph(0)))
    assert picture.size == (500, 375)
    assert photograph(0) == photograph(0) != photograph(1)


def test_the_sentences_differ() -> None:
    pairs = sentence_pairs(200)
    assert len({pair.text_a for pair in pairs}) > 190
    assert 30 < np.mean([len(pair.text_b.encode()) for pair in pairs]) < 120


@pytest.mark.slow
def test_one_run_gives_every_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "figures.json"
    monkeypatch.setattr(
        sys, "argv", ["shards", "--json", str(out), "--images", "64", "--pairs", "300", "--rounds", "1"]
    )
    shards.main()
    figures = json.loads(out.read_text())
    wanted = {"ratio_vs_webdataset", "share_of_decode_limit", "write_ratio_vs_tarwriter", "text_read_ratio"}
    wanted |= {"text_build_pairs_per_cpu_s", "text_build_ratio_vs_tarwriter"}
    assert wanted | {"text_size_ratio", "resume_s", "resume_peak_mb"} <= figures.keys()
    assert all(value > 0 for value in figures.values())
    assert "plain webdataset" in capsys.readouterr().out
