from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cclm.run.machine import describe_environment, usable_cores


def test_it_names_machine_cores_versions_and_time() -> None:
    found = describe_environment()
    assert {"machine", "cores", "python", "torch", "deepspeed", "transformers", "started"} <= set(found)
    assert re.match(r"\d+\.\d+", found["torch"]) and float(found["cores"]) > 0
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", found["started"])


def test_the_launcher_says_how_many_ranks_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert describe_environment()["ranks"] == "1"
    monkeypatch.setenv("WORLD_SIZE", "16")
    assert describe_environment()["ranks"] == "16"


def test_it_does_not_import_what_it_names() -> None:
    code = (
        "import sys; from cclm.run.machine import describe_environment\n"
        "describe_environment(); sys.exit(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)) or 0)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("quota", "limit"), [("50000 100000", 0.5), ("max 100000", None), ("nonsense", None), (None, None)]
)
def test_a_containers_limit_counts(tmp_path: Path, quota: str | None, limit: float | None) -> None:
    path = tmp_path / "cpu.max"
    if quota is not None:
        path.write_text(quota)
    assert usable_cores(path) == (limit if limit is not None else len(os.sched_getaffinity(0)))
