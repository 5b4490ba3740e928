"""`python -m pretrain` by itself, as somebody tries it first: one process, the default engine, no launcher."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cclm.run.launcher import ADDRESS, NUMBERS
from tests.tiny_run import recipe, write_corpus, write_recipe

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


def start(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in (*NUMBERS, *ADDRESS)}
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)


def losses(run: Path) -> list[float]:
    return [json.loads(line)["values"]["loss"] for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def test_one_process_trains_and_two_ranks_go_on(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path)
    changes = {"optimizer": {"total_steps": 4, "learning_rate": 0.002}, "track": {"every_steps": 1}}
    changes["checkpoint"] = {"every_steps": 2, "keep": 2}
    path = write_recipe(tmp_path / "recipe.yaml", recipe(corpus, tmp_path / "run", **changes))
    plain = start("pretrain", "--recipe", str(path), "--engine", "plain", "--run_folder", str(tmp_path / "plain"))
    assert plain.returncode == 0, plain.stderr
    default = start("pretrain", "--recipe", str(path))
    assert default.returncode == 0, default.stderr
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "plain"), rel=1e-5)
    (tmp_path / "run" / "done.json").unlink()
    shutil.rmtree(tmp_path / "run/checkpoints/step_000000004")
    two = start("launch", "run", "--ranks", "2", "--", "python", "-m", "pretrain", "--recipe", str(path))
    assert two.returncode == 0, two.stdout + two.stderr
    assert (tmp_path / "run" / "done.json").exists()
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "plain"), rel=1e-4)
