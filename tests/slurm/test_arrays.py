"""Array jobs, and jobs that wait for them: one failing task stops neither the others nor goes unnoticed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.slurm.jobs import ROOT, attempts, ended, known_jobs, launch, said, slurm, state, wait

SMALL = ("--time", "5", "--save-s", "60", "--preflight", "none")


def submit(run: Path, *options: str, command: str) -> tuple[str, str]:
    told = launch("submit", "--run-folder", str(run), *SMALL, *options, "--", "bash", "-c", command)
    assert told.returncode == 0, told.stderr
    return told.stdout.strip(), told.stderr


def test_an_array_with_a_failing_task(tmp_path: Path) -> None:
    parts, merged, repaired = tmp_path / "parts", tmp_path / "merged", tmp_path / "repaired"
    task = f"echo task @TASK@; test @TASK@ != 1 || cat {repaired}"
    array, _ = submit(parts, "--array", "3", "--concurrent", "2", "--sbatch", "hold", command=task)
    after, told = submit(merged, "--after", str(parts), command=f"cat {parts}/logs/task_*.log")
    slurm("scontrol", "release", array)
    assert f"begins after job {array} of {parts}" in told

    assert [ended(f"{array}_{number}", parts) for number in range(3)] == ["COMPLETED", "FAILED", "COMPLETED"]
    assert ended(after, merged) == "FAILED"
    assert f"{parts} is not done: array task(s) 1 have not ended with code 0" in said(merged)
    assert attempts(merged) == [], "it did not begin"

    repaired.touch()
    array, told = submit(parts, "--array", "3", "--concurrent", "2", command=task)
    assert "launch: array tasks 1 of 3" in told
    wait(lambda: state(f"{array}_1") != "GONE", "the task")
    after, _ = submit(merged, "--after", str(parts), command=f"cat {parts}/logs/task_*.log")
    assert ended(after, merged) == "COMPLETED", said(merged)
    assert attempts(merged)[-1].exit_status == "done"
    log = (merged / "logs/rank_0.log").read_text()
    assert [log.count(f"\ntask {number}\n") for number in range(3)] == [1, 2, 1]

    known = known_jobs()
    told_again = launch("submit", "--run-folder", str(parts), *SMALL, "--array", "3", "--", "true")
    assert told_again.returncode == 2
    assert "expected array tasks that have not ended with code 0, got none" in told_again.stderr
    assert known_jobs() == known


def shards_of(folder: Path) -> list[dict[str, Any]]:
    return [dict(shard) for shard in json.loads((folder / "manifest.json").read_text())["shards"]]


def test_shards_are_built_by_an_array_and_a_merge(tmp_path: Path) -> None:
    """Three jobs that wait for each other write what one process writes."""
    lines = [{"text_a": f"word {n}", "lang_a": "en", "text_b": f"Wort {n}", "lang_b": "de"} for n in range(30)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    options = {"path": str(tmp_path / "pairs.jsonl")}
    sets = {"pairs": {"view": "text_pair", "corpus": "pair_file", "num_shards": 3, "options": options}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"sets": sets}))
    jobs, out = tmp_path / "jobs", tmp_path / "out"
    words = [
        str(tmp_path / "mine.yaml"),
        "--out",
        str(out),
        "--tasks",
        "2",
        "--write-tasks",
        "2",
        "--run-folder",
        str(jobs),
    ]
    told = launch("shards", *words, "--time", "5", "--save-s", "60")
    assert told.returncode == 0, told.stderr
    submitted = dict(line.split() for line in told.stdout.splitlines())
    assert list(submitted) == ["read", "write", "merge"]
    assert ended(submitted["merge"], jobs / "merge") == "COMPLETED", said(jobs / "merge")

    alone = [sys.executable, "-m", "shards", "build", str(tmp_path / "mine.yaml"), "--out", str(tmp_path / "alone")]
    subprocess.run(alone, cwd=ROOT, check=True, capture_output=True)
    assert shards_of(out / "pairs") == shards_of(tmp_path / "alone/pairs")
    again = launch("shards", *words)
    assert [line for line in again.stderr.splitlines() if "done already" in line] == [
        f"launch: {name}: done already" for name in submitted
    ]
