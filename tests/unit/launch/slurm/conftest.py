"""Slurm's commands played by small scripts, for what is submitted."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

FAKE = """#!/bin/bash
echo "${0##*/} $*" >> "${0%/*}/calls"
case "$0 $*" in
  *"sbatch --test-only"*) echo "sbatch: Job 6 to start at noon on n[1-2]" >&2 ;;
  *"sbatch --parsable"*) echo 7 ;;
  *squeue*) for job in $([ -d runs/rates ] && echo 7_0 7_1 7_2 || echo 7); do
    echo "$job|$(cat "${0%/*}/state")|||/a/script|None"; done ;;
esac
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with one recipe, on a cluster that takes everything."""
    for name in ("sbatch", "squeue", "scontrol"):
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(FAKE)
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "bin/state").write_text("RUNNING\n")
    (tmp_path / "pretrain/recipes").mkdir(parents=True)
    (tmp_path / "data/images").mkdir(parents=True)
    recipe = {"run_folder": "runs/small", "views": {"image_text": {"sources": {"small": {"path": "data/images"}}}}}
    (tmp_path / "pretrain/recipes/small.yaml").write_text(yaml.safe_dump(recipe))
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    monkeypatch.delenv("CCLM_PROFILE", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path
