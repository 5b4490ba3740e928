"""One gradient of the word table in place of two, where ZeRO-3 holds the table in pieces: the same losses and norms."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.tiny_finetune import run_here
from tests.tiny_run import recipe, write_corpus, write_recipe

pytestmark = pytest.mark.slow


def test_both_ways_agree_on_two_ranks(tmp_path: Path) -> None:
    corpus, found = write_corpus(tmp_path / "corpus"), {}
    for way in ("shared", "torch"):
        settings = recipe(corpus, tmp_path / way, deepspeed="ds_configs/zero3_cpu.json", kernels={"word_table": way})
        settings["optimizer"] = {"total_steps": 6, "learning_rate": 0.01}
        settings["track"] = {"every_steps": 1, "tensorboard": False}
        path = write_recipe(tmp_path / f"{way}.yaml", settings)
        words = ["-m", "pretrain", "--recipe", str(path), "--run_folder", json.dumps(str(tmp_path / way))]
        run_here(words, ranks=2)
        lines = [json.loads(line)["values"] for line in (tmp_path / way / "log.jsonl").read_text().splitlines()]
        found[way] = [value for line in lines for name, value in line.items() if not name.startswith("speed/")]
    assert len(found["torch"]) > 6
    assert found["shared"] == pytest.approx(found["torch"], rel=1e-5)
